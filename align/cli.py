"""The `align` command. Imports lazily: `align --help` is answered without torch."""

from __future__ import annotations

import argparse
import sys

from align import __version__, cli_help
from align.errors import UserError, run_main
from align.verbs import negatives, recipes, ref, rollouts, rows, runs


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
    for family in (recipes, rows, negatives, ref, rollouts, runs):
        family.add(commands)
    what = "print a script that completes the words of align in a shell"
    completion = commands.add_parser("completion", help=what, description=what)
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    completion.set_defaults(run=lambda given: print(cli_help.completion(parser, given.shell)))
    cli_help.explain(parser)
    return parser


if __name__ == "__main__":
    main()
