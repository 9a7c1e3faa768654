"""`align check`, `plan` and `train`."""

from __future__ import annotations

import argparse

from align.errors import UserError, UserErrors
from align.verbs.arguments import count, size


def add(commands) -> None:
    for add_command in (_add_check, _add_plan, _add_train):
        add_command(commands)


def _add_check(commands) -> None:
    check = commands.add_parser("check", help="check recipes without loading a model or data")
    check.add_argument("recipes", nargs="*", metavar="RECIPE", help="recipe files; key=value overrides apply to all")
    check.add_argument("--list", action="store_true", help="print all objectives, what they need and are normalised by")
    check.set_defaults(run=_check)


def _add_plan(commands) -> None:
    what = "tell what a recipe will take before it is run: memory by part, tokens, steps, time; and whether it fits"
    plan = commands.add_parser("plan", help=what, description=what)
    plan.add_argument("recipe", metavar="RECIPE")
    plan.add_argument("overrides", nargs="*", metavar="key=value")
    plan.add_argument("--gpus", type=count, metavar="N", help="plan for so many GPUs (1); without: this machine")
    plan.add_argument("--gpu-memory", type=size, metavar="GB", help="memory of each, in units of 10^9 bytes")
    plan.add_argument(
        "--zero", default="0", metavar="0|1|2|3|FILE",
        help="a ZeRO stage, or a file as in launch/: accelerate, DeepSpeed",
    )  # fmt: skip
    plan.add_argument(
        "--probe", action=argparse.BooleanOptionalAction,
        help="take the time of some micro-batches; without: if the device planned for is here",
    )  # fmt: skip
    plan.add_argument("--json", action="store_true", help="print JSON")
    plan.set_defaults(run=_plan)


def _add_train(commands) -> None:
    train = commands.add_parser("train", help="run a recipe in this process (accelerate launch does it on several)")
    train.add_argument("recipe", metavar="RECIPE")
    train.add_argument("overrides", nargs="*", metavar="key=value")
    train.set_defaults(run=_train)


def _check(given: argparse.Namespace) -> None:
    if not given.list:
        return check_recipes(given.recipes)
    if given.recipes:
        raise UserError("command line", "--list names no recipe", "align check --list")
    from align import catalogue

    print(catalogue.table())


def _plan(given: argparse.Namespace) -> None:
    from align.planning import command

    command.main(
        given.recipe, given.overrides, gpus=given.gpus, gpu_memory=given.gpu_memory, zero=given.zero,
        probe=given.probe, as_json=given.json,
    )  # fmt: skip


def _train(given: argparse.Namespace) -> None:
    from align.train import main as train_main

    train_main([given.recipe, *given.overrides])


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
