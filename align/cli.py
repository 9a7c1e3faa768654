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
    for add in (_add_plan, _add_doctor, _add_preview, _add_ref, _add_evaluate, _add_rollouts):
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


def _plan(given: argparse.Namespace) -> None:
    from align.planning import command

    command.main(
        given.recipe, given.overrides, gpus=given.gpus, gpu_memory=given.gpu_memory, zero=given.zero,
        probe=given.probe, as_json=given.json,
    )  # fmt: skip


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

    command.main(given.runs, given.data, tune=given.tune, draws_curve=given.curve, plot=given.plot, as_json=given.json)


def _rollouts(given: argparse.Namespace) -> None:
    from align import rollout_commands

    rollout_commands.main(given)


def _add_plan(commands) -> None:
    what = "tell what a recipe will take before it is run: memory by part, tokens, steps, time; and whether it fits"
    plan = commands.add_parser("plan", help=what, description=what)
    plan.add_argument("recipe", metavar="RECIPE")
    plan.add_argument("overrides", nargs="*", metavar="key=value")
    plan.add_argument("--gpus", type=_count, metavar="N", help="plan for so many GPUs (1); without: this machine")
    plan.add_argument("--gpu-memory", type=_size, metavar="GB", help="memory of each, in units of 10^9 bytes")
    plan.add_argument(
        "--zero",
        default="0",
        metavar="0|1|2|3|FILE",
        help="a ZeRO stage, or a file as in launch/: accelerate, DeepSpeed",
    )
    plan.add_argument(
        "--probe", action=argparse.BooleanOptionalAction,
        help="take the time of some micro-batches; without: if the device planned for is here",
    )  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)


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
    what = "measure finished runs: multiple choice, with intervals, against the base"
    evaluate = commands.add_parser("evaluate", help=what, description=what)
    evaluate.add_argument("runs", nargs="+", metavar="RUN", help="the folder that a run wrote")
    evaluate.add_argument(
        "--data", required=True, metavar="SOURCE", help="rows with right and wrong answers: a file, builtin or hub id"
    )
    evaluate.add_argument("--tune", metavar="SOURCE", help="choose the negative head's weight on these other rows")
    evaluate.add_argument("--curve", action="store_true", help="over the snapshots of the runs (train.snapshots)")
    evaluate.add_argument("--plot", metavar="OUT.png|svg", help="draw the curves (needs the extra `plot`)")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_evaluate)


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


def _size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of gigabytes above 0")
    return size


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
