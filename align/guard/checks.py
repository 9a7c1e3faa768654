"""Checks of the recipe's guard and of reward calibration, against what the objective reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align import objectives
from align.guard.options import Budgets
from align.schema import Reader

if TYPE_CHECKING:
    from align.recipe import Recipe

_READ = {"positive": objectives.POSITIVE, "sample": objectives.SAMPLE, "top1": objectives.NEGATIVE,
         "repeated": objectives.NEGATIVE}  # fmt: skip


def check(reader: Reader, recipe: Recipe, needs: tuple[str, ...], roles: set[int]) -> None:
    """Adds to `reader` budgets of what is never measured, and calibration without pairs."""
    if set(needs) == set(objectives.NEEDS):
        return  # nobody knows what the objective reads
    name, at = recipe.objective["name"], ("guard", "budgets")
    for watch, role in _READ.items():
        kind = {objectives.POSITIVE: "positives", objectives.SAMPLE: "samples"}.get(role, "negatives")
        if _is_set(recipe, watch) and role not in roles:
            reader.fail((*at, watch), f"objective {name!r} reads no {kind}", "leave it out")
    if _is_set(recipe, "retain") and not recipe.retain.sources:
        reader.fail((*at, "retain"), "there are no retain rows", "give retain.sources, or leave it out")
    if recipe.weights.calibrate is not None and "pairs" not in needs:
        what = f"objective {name!r} is not on pairs"
        reader.fail(("weights", "calibrate"), what, "leave it out, or use an objective that needs pairs (dpo)")


def _is_set(recipe: Recipe, watch: str) -> bool:
    return getattr(recipe.guard.budgets, watch) not in (getattr(Budgets(), watch), None)
