"""`align doctor` and `align preview`: rows before anything learns from them."""

from __future__ import annotations

import argparse

from align.verbs.arguments import count


def add(commands) -> None:
    for add_command in (_add_doctor, _add_preview):
        add_command(commands)


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
    preview.add_argument("--rows", type=count, default=3, metavar="N", help="how many (3)")
    preview.add_argument("--html", metavar="OUT.html", help="write a page in place of printing")
    preview.set_defaults(run=_preview)


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
