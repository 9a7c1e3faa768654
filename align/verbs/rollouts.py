"""`align sample`, `judge` and `iterate`: answers of the policy as rows."""

from __future__ import annotations

import argparse

from align.verbs.arguments import count


def add(commands) -> None:
    sample = commands.add_parser("sample", help="draw answers to the recipe's prompts from the policy, and verify them")
    judge = commands.add_parser("judge", help="judge the steps of the wrong answers that were sampled")
    judge.add_argument("--score", metavar="FILE", help="measure the recipe's judges on rows with judged steps instead")
    judge.add_argument("--rows", type=count, metavar="N", help="with --score: the first rows only")
    iterate = commands.add_parser("iterate", help="sample, judge, train; again from the trained policy")
    iterate.add_argument("--rounds", type=count, default=1, metavar="R", help="how often (1)")
    iterate.add_argument("--seeds", type=count, default=1, metavar="N", help="do all of it for N seeds (1)")
    for command in (sample, judge, iterate):
        command.description = "Writes into the recipe's output; killed, it goes on where it was."
        command.add_argument("recipe", metavar="RECIPE")
        command.add_argument("overrides", nargs="*", metavar="key=value")
        command.set_defaults(run=_rollouts)


def _rollouts(given: argparse.Namespace) -> None:
    from align.rollouts import commands

    commands.main(given)
