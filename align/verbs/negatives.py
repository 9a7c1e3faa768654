"""`align mine` and `align negatives`: where negatives come from."""

from __future__ import annotations

import argparse

from align.verbs.arguments import count


def add(commands) -> None:
    _add_mine(commands)
    what = "make negatives, and repair those that are none"
    negatives = commands.add_parser("negatives", help=what, description=what)
    actions = negatives.add_subparsers(dest="action", metavar="ACTION", required=True)
    for add_action in (_add_near_miss, _add_degrade, _add_repair):
        add_action(actions)


def _add_mine(commands) -> None:
    what = "choose negatives among candidates by their scores, and show the scores"
    mine = commands.add_parser("mine", help=what, description=f"{what}. Killed, it goes on where it was.")
    mine.add_argument("recipe", metavar="RECIPE")
    mine.add_argument("overrides", nargs="*", metavar="key=value")
    mine.set_defaults(run=_mine)


def _add_near_miss(actions) -> None:
    what = "good answers with one thing wrong: a number, a name, a negation, a step, ..."
    action = actions.add_parser("near-miss", help=what, description=f"{what} Killed, it goes on where it was.")
    action.add_argument("source", metavar="SOURCE", help="rows with positives: a file, glob, builtin or hub id")
    action.add_argument("--out", required=True, metavar="FILE.jsonl", help="the rows again, with the negatives added")
    action.add_argument("--kinds", metavar="KIND,...", help="which kinds of edits (all)")
    action.add_argument("--n", type=count, default=2, metavar="K", help="most negatives added to a row (2)")
    action.add_argument("--seed", type=int, default=0, help="decides what is drawn, whatever the order of rows (0)")
    action.add_argument(
        "--verifier", metavar="NAME", help="keep what it finds wrong alone: numeric, exact, math or package.function"
    )
    action.set_defaults(run=_near_miss)


def _add_degrade(actions) -> None:
    what = "let the policy, or a weaker model, answer with less to go by; keep what is really worse than the positives"
    degrade = actions.add_parser("degrade", help=what, description=f"{what}. Killed, it goes on where it was.")
    degrade.add_argument("recipe", metavar="RECIPE")
    degrade.add_argument("overrides", nargs="*", metavar="key=value")
    degrade.set_defaults(run=_degrade)


def _add_repair(actions) -> None:
    what = "find negatives that are right and pairs labelled the wrong way round, and mend them"
    repair = actions.add_parser("repair", help=what, description=f"{what}. Killed, it goes on where it was.")
    repair.add_argument("recipe", metavar="RECIPE")
    repair.add_argument("overrides", nargs="*", metavar="key=value")
    repair.add_argument("--out", required=True, metavar="OUT.jsonl", help="the rows, mended; what to look at beside it")
    repair.set_defaults(run=_repair)


def _mine(given: argparse.Namespace) -> None:
    from align.negatives import mine_command

    mine_command.main(given.recipe, given.overrides)


def _near_miss(given: argparse.Namespace) -> None:
    from align.negatives import nearmiss_command

    nearmiss_command.main(
        given.source, given.out, kinds=given.kinds, most=given.n, seed=given.seed, verifier=given.verifier
    )


def _degrade(given: argparse.Namespace) -> None:
    from align.negatives import degrade_command

    degrade_command.main(given)


def _repair(given: argparse.Namespace) -> None:
    from align.negatives import repair_command

    repair_command.main(given)
