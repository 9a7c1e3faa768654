"""`align negatives`: where negatives come from. Each way of making them adds its own action below.

Imported for `align --help`: what does the work is imported when it is asked for.
"""

from __future__ import annotations

import argparse


def add(commands) -> None:
    """The command with its actions."""
    what = "make negatives of the rows that there are"
    negatives = commands.add_parser("negatives", help=what, description=what)
    actions = negatives.add_subparsers(dest="action", metavar="ACTION", required=True)
    for add_action in (_add_near_miss,):
        add_action(actions)


def _add_near_miss(actions) -> None:
    what = "good answers with one thing wrong: a number, a name, a negation, a step, ..."
    action = actions.add_parser("near-miss", help=what, description=f"{what} Killed, it goes on where it was.")
    action.add_argument("source", metavar="SOURCE", help="rows with positives: a file, glob, builtin or hub id")
    action.add_argument("--out", required=True, metavar="FILE.jsonl", help="the rows again, with the negatives added")
    action.add_argument("--kinds", metavar="KIND,...", help="which kinds of edits (all)")
    action.add_argument("--n", type=_count, default=2, metavar="K", help="most negatives added to a row (2)")
    action.add_argument("--seed", type=int, default=0, help="decides what is drawn, whatever the order of rows (0)")
    action.add_argument(
        "--verifier", metavar="NAME", help="keep what it finds wrong alone: numeric, exact, math or package.function"
    )
    action.set_defaults(run=_near_miss)


def _near_miss(given: argparse.Namespace) -> None:
    from align.negatives import nearmiss_command

    nearmiss_command.main(
        given.source, given.out, kinds=given.kinds, most=given.n, seed=given.seed, verifier=given.verifier
    )


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)
