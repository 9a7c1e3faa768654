"""`align evaluate`, `report`, `compare`, `merge`, `repair`: finished runs."""

from __future__ import annotations

import argparse

from align.verbs.arguments import count


def add(commands) -> None:
    for add_command in (_add_evaluate, _add_report, _add_merge, _add_repair):
        add_command(commands)


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
    add("--rows", type=count, metavar="N", help="the first rows of each source only")
    add("--verifier", metavar="NAME", help="pass@k: what tells right answers (numeric exact math code regex:PATTERN)")
    add("--samples", type=count, metavar="K", help="pass@k: answers drawn for each prompt (8)")
    add("--max-new-tokens", type=count, metavar="N", help="longest answer that is written (64)")
    add("--tune", metavar="SOURCE", help="choose the negative head's weight on these other rows")
    add("--curve", action="store_true", help="multiple choice over the snapshots of the runs (train.snapshots)")
    add("--plot", metavar="OUT.png|svg", help="draw the curves (needs the extra `plot`)")
    add("--lm-eval", action="append", default=[], metavar="TASK", help="a task of lm-evaluation-harness")
    add("--lm-eval-path", metavar="FOLDER", help="where more tasks are, as YAML files")
    add("--json", action="store_true", help="print JSON; of several runs a list")
    evaluate.set_defaults(run=_evaluate)


def _add_report(commands) -> None:
    what = "write a run's report.html and model card again, from its files"
    report = commands.add_parser("report", help=what, description=what)
    report.add_argument("run_folder", metavar="RUN", help="the folder that a run wrote, also while it goes on")
    report.set_defaults(run=_report)
    what = "runs side by side: what they cost, what they changed, where their recipes differ"
    compare = commands.add_parser("compare", help=what, description=what)
    compare.add_argument("runs", nargs="+", metavar="RUN", help="the folders that runs wrote")
    compare.add_argument("--out", metavar="FILE.html", help="write a page with curves and answers, too")
    compare.add_argument("--json", action="store_true", help="print JSON")
    compare.set_defaults(run=_compare)


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
    repair.add_argument("--heads", type=count, default=8, metavar="N", help="how many at most (8)")
    repair.add_argument("--json", action="store_true", help="print JSON")
    repair.set_defaults(run=_repair)


def _evaluate(given: argparse.Namespace) -> None:
    from align.evaluation import command

    command.main(given)


def _report(given: argparse.Namespace) -> None:
    from align.report import command

    command.report(given.run_folder)


def _compare(given: argparse.Namespace) -> None:
    from align.report import command

    command.compare_runs(given.runs, given.out, given.json)


def _merge(given: argparse.Namespace) -> None:
    from align.repair import merge_command

    merge_command.main(given)


def _repair(given: argparse.Namespace) -> None:
    from align.repair import repair_command

    repair_command.main(
        given.model, given.data, given.out, count=given.heads, settings=given.overrides, as_json=given.json
    )
