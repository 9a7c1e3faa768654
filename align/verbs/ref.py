"""`align ref`: the store of reference log-probs."""

from __future__ import annotations

import argparse

from align.errors import FAILED


def add(commands) -> None:
    ref = commands.add_parser("ref", help="the store of reference log-probs")
    ref.set_defaults(run=_run)
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


def _run(given: argparse.Namespace) -> None:
    """`align ref ACTION`. Raises UserError; SystemExit with code 1 if entries are damaged."""
    if given.action == "build":
        from align import recipe

        loaded = recipe.load(given.recipe, given.overrides)
        from align.job.reference_build import build

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
