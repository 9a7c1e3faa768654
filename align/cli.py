"""The `align` command. Imports lazily: `align --help` is answered without torch."""

from __future__ import annotations

import argparse
import sys

from align import __version__
from align.errors import FAILED, UserError, UserErrors, run_main


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UserError("command line", message, f"see {self.prog} --help")


def main(arguments: list[str] | None = None) -> None:
    run_main(lambda: run(arguments))


def run(arguments: list[str] | None = None) -> None:
    """Runs one command. Raises UserError."""
    parser = _parser()
    given, more = parser.parse_known_args(arguments)
    if more and hasattr(given, "overrides") and all("=" in word and not word.startswith("-") for word in more):
        given.overrides += more  # argparse does not take them behind an option
    elif more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    if given.command is None:
        parser.print_help(sys.stderr)
        raise UserError("command line", "names no command", "align check RECIPE, for example")
    given.run(given)


def _parser() -> _Parser:
    """Every command with its options; `run` is what does it."""
    parser = _Parser(prog="align", description="Train language models on negative examples.")
    parser.add_argument("--version", action="version", version=f"align {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    check = commands.add_parser("check", help="check recipes without loading a model or data")
    check.add_argument("recipes", nargs="*", metavar="RECIPE", help="recipe files; key=value overrides apply to all")
    check.add_argument("--list", action="store_true", help="print all objectives, what they need and are normalised by")
    check.set_defaults(run=_check)
    train = commands.add_parser("train", help="run a recipe in this process (accelerate launch does it on several)")
    train.add_argument("recipe", metavar="RECIPE")
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.set_defaults(run=_train)
    for add in (_add_doctor, _add_preview, _add_ref, _add_evaluate, _add_rollouts, _add_merge, _add_repair):
        add(commands)
    return parser


def _check(given: argparse.Namespace) -> None:
    if not given.list:
        return check_recipes(given.recipes)
    if given.recipes:
        raise UserError("command line", "--list names no recipe", "align check --list")
    from align import catalogue

    print(catalogue.table())


def _train(given: argparse.Namespace) -> None:
    from align.train import main as train_main

    train_main([given.recipe, *given.overrides])


def _doctor(given: argparse.Namespace) -> None:
    from align import doctor_command

    raise SystemExit(
        doctor_command.main(
            given.what, evaluated=given.eval, tokenizer=given.tokenizer, flips=given.flips, as_json=given.json,
            fix=given.fix,
        )
    )  # fmt: skip


def _preview(given: argparse.Namespace) -> None:
    from align import models, recipe
    from align.data import preview

    loaded = recipe.load(given.recipe, given.overrides)
    preview.main(loaded, models.load_tokenizer(loaded.model), given.rows, given.html)


def _evaluate(given: argparse.Namespace) -> None:
    from align.evaluation import command

    command.main(given)


def _merge(given: argparse.Namespace) -> None:
    from align.repair import merge_command

    merge_command.main(given)


def _repair(given: argparse.Namespace) -> None:
    from align.repair import repair_command

    repair_command.main(
        given.model, given.data, given.out, count=given.heads, settings=given.overrides, as_json=given.json
    )


def _rollouts(given: argparse.Namespace) -> None:
    from align import rollout_commands

    rollout_commands.main(given)


def _add_doctor(commands) -> None:
    what = "look for faults in rows, before anything learns from them; exit code 1 if there are any"
    doctor = commands.add_parser("doctor", help=what, description=what)
    doctor.add_argument(
        "what", nargs="*", metavar="RECIPE|SOURCE", help="a recipe with key=value overrides, or files, globs, hub ids"
    )
    doctor.add_argument("--eval", action="append", default=[], metavar="SOURCE", help="what a model is measured on")
    doctor.add_argument("--tokenizer", metavar="MODEL", help="look at tokens, too (a recipe names its own)")
    doctor.add_argument("--flips", action="store_true", help="score pairs with the recipe's model: which are flipped?")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument(
        "--fix", metavar="OUT.jsonl", help="write the rows again without what can be mended or left out"
    )
    doctor.set_defaults(run=_doctor)


def _add_preview(commands) -> None:
    what = "show the first rows of a recipe as the model is shown them, token by token"
    preview = commands.add_parser("preview", help=what, description=what)
    preview.add_argument("recipe", metavar="RECIPE")
    preview.add_argument("overrides", nargs="*", metavar="key=value")
    preview.add_argument("--rows", type=_count, default=3, metavar="N", help="how many (3)")
    preview.add_argument("--html", metavar="OUT.html", help="write a page in place of printing")
    preview.set_defaults(run=_preview)


def _add_evaluate(commands) -> None:
    what = "measure finished runs against their base, with intervals"
    more = (
        "Without --data: on what the run held out and builtin:benign. Measures: preference_accuracy multiple_choice "
        "flips negative_bias pass_at_k drift kl over_refusal repetition; those that the shape of the rows is for, if "
        "none is named. What is found is kept in RUN/evaluations.json."
    )
    evaluate = commands.add_parser("evaluate", help=what, description=f"{what.capitalize()}. {more}")
    add = evaluate.add_argument
    add("runs", nargs="+", metavar="RUN", help="the folder that a run wrote")
    add("--data", action="append", default=[], metavar="SOURCE", help="rows to measure on: a file, builtin or hub id")
    add("--measure", action="append", default=[], metavar="NAME", help="measure this on all of --data, whatever it is")
    add("--rows", type=_count, metavar="N", help="the first rows of each source only")
    add("--verifier", metavar="NAME", help="pass@k: what tells right answers (numeric exact math code regex:PATTERN)")
    add("--samples", type=_count, metavar="K", help="pass@k: answers drawn for each prompt (8)")
    add("--max-new-tokens", type=_count, default=64, metavar="N", help="longest answer that is written (64)")
    add("--tune", metavar="SOURCE", help="choose the negative head's weight on these other rows")
    add("--curve", action="store_true", help="multiple choice over the snapshots of the runs (train.snapshots)")
    add("--plot", metavar="OUT.png|svg", help="draw the curves (needs the extra `plot`)")
    add("--lm-eval", action="append", default=[], metavar="TASK", help="a task of lm-evaluation-harness")
    add("--lm-eval-path", metavar="FOLDER", help="where more tasks are, as YAML files")
    add("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_evaluate)


def _add_merge(commands) -> None:
    what = "take a finished run's policy back towards its base: the gain kept, fewer answers lost"
    merge = commands.add_parser("merge", help=what, description=what)
    merge.add_argument("run_folder", metavar="RUN", help="the folder that a run wrote")
    merge.add_argument("--interpolate", type=float, metavar="A", help="write base + A (policy - base); 1 is the policy")
    merge.add_argument(
        "--sweep", type=float, nargs="*", metavar="A", help="measure these, or 0.1 to 1; choose the nearest to the base"
    )
    merge.add_argument("--data", metavar="SOURCE", help="sweep: rows with right and wrong answers that tell the gain")
    merge.add_argument("--flips", metavar="SOURCE", help="sweep: rows to count flips on (those of --data)")
    merge.add_argument(
        "--fisher", nargs="?", const="", metavar="SOURCE",
        help="hold a weight to the base by its Fisher information on the run's rows, or on these; writes full weights",
    )  # fmt: skip
    merge.add_argument("--full", action="store_true", help="write full weights of a LoRA run, not a scaled adapter")
    merge.add_argument("--out", metavar="FOLDER", help="what to write (RUN/merged-A; after a sweep nothing)")
    merge.add_argument("--json", action="store_true", help="print JSON")
    merge.set_defaults(run=_merge)


def _add_repair(commands) -> None:
    what = "find the attention heads that look at No whatever the question, and train these alone (NASA)"
    repair = commands.add_parser("repair", help=what, description=what)
    repair.add_argument("model", metavar="RUN|MODEL", help="the folder that a run wrote, or a model")
    repair.add_argument("overrides", nargs="*", metavar="key=value", help="of the recipe that trains the heads")
    repair.add_argument(
        "--data",
        required=True,
        metavar="SOURCE",
        help="questions answered by Yes or No: half to train, half to measure on",
    )
    repair.add_argument("--out", required=True, metavar="FOLDER", help="the run folder to write")
    repair.add_argument("--heads", type=_count, default=8, metavar="N", help="how many at most (8)")
    repair.add_argument("--json", action="store_true", help="print JSON")
    repair.set_defaults(run=_repair)


def _add_rollouts(commands) -> None:
    sample = commands.add_parser("sample", help="draw answers to the recipe's prompts from the policy, and verify them")
    judge = commands.add_parser("judge", help="judge the steps of the wrong answers that were sampled")
    judge.add_argument("--score", metavar="FILE", help="measure the recipe's judges on rows with judged steps instead")
    judge.add_argument("--rows", type=_count, metavar="N", help="with --score: the first rows only")
    iterate = commands.add_parser("iterate", help="sample, judge, train; again from the trained policy")
    iterate.add_argument("--rounds", type=_count, default=1, metavar="R", help="how often (1)")
    iterate.add_argument("--seeds", type=_count, default=1, metavar="N", help="do all of it for N seeds (1)")
    for command in (sample, judge, iterate):
        command.description = "Writes into the recipe's output; killed, it goes on where it was."
        command.add_argument("recipe", metavar="RECIPE")
        command.add_argument("overrides", nargs="*", metavar="key=value")
        command.set_defaults(run=_rollouts)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _add_ref(commands) -> None:
    ref = commands.add_parser("ref", help="the store of reference log-probs")
    ref.set_defaults(run=run_ref)
    actions = ref.add_subparsers(dest="action", metavar="ACTION", required=True)
    what = "score the rows of a recipe under its references, for any run to come (not samples, which a run draws)"
    build = actions.add_parser("build", help=what, description=what)
    build.add_argument("recipe", metavar="RECIPE")
    build.add_argument("overrides", nargs="*", metavar="key=value")
    stat = actions.add_parser("stat", help="what is in a store")
    verify = actions.add_parser("verify", help="check every entry; exit code 1 if any is damaged")
    for action in (stat, verify):
        action.add_argument("folder", nargs="?", metavar="FOLDER", help="a store; reference.store: auto if left out")
    export = actions.add_parser("export", help="write all whole entries of a store to one file")
    export.add_argument("folder", metavar="FOLDER")
    export.add_argument("file", metavar="OUT")
    imported = actions.add_parser("import", help="add an exported file to a store; exit code 1 if any of it is damaged")
    imported.add_argument("file", metavar="FILE")
    imported.add_argument("folder", metavar="FOLDER")


def run_ref(given: argparse.Namespace) -> None:
    """`align ref ACTION`. Raises UserError; SystemExit with code 1 if entries are damaged."""
    if given.action == "build":
        from align import recipe

        loaded = recipe.load(given.recipe, given.overrides)
        from align.reference_build import build

        return build(loaded)
    from pathlib import Path

    from align.reference import commands
    from align.reference.store import default_folder

    folder, is_whole = Path(given.folder).expanduser() if given.folder else default_folder(), True
    if given.action == "stat":
        commands.stat(folder)
    elif given.action == "verify":
        is_whole = commands.verify(folder)
    elif given.action == "export":
        commands.export(folder, Path(given.file))
    else:
        is_whole = commands.import_(Path(given.file), folder)
    if not is_whole:
        raise SystemExit(FAILED)


def check_recipes(words: list[str]) -> None:
    """Checks every recipe named; all mistakes of all of them are reported."""
    from align import recipe

    overrides = [word for word in words if "=" in word]
    paths = [word for word in words if "=" not in word]
    if not paths:
        raise UserError("command line", "names no recipe", "align check RECIPE [key=value ...]")
    errors: dict[str, UserError] = {}  # by their text: a wrong override is the same mistake for every recipe
    for path in paths:
        try:
            loaded = recipe.load(path, overrides)
        except UserError as error:
            errors |= {str(single): single for single in error.each()}
        else:
            print(f"{path}: ok ({loaded.objective['name']}, {loaded.model.path}, writes {loaded.output})")
    if errors:
        raise UserErrors(list(errors.values()))


if __name__ == "__main__":
    main()
