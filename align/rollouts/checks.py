"""Checks of the recipe sections warm_start and rollouts, and that judges are there for roll-outs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.data import sources
from align.judges.checks import judge_checks, verifier_checks
from align.schema import Reader

if TYPE_CHECKING:
    from align.recipe import Recipe


def check(reader: Reader, recipe: Recipe, needs: tuple[str, ...]) -> None:
    """Adds to `reader` what is wrong in the three sections, and between them and the rest."""
    if recipe.warm_start is not None and recipe.warm_start.path is not None:
        problem = sources.check(recipe.warm_start.path, recipe.warm_start.split)
        if problem:
            reader.fail(("warm_start", "path"), *problem)
    if recipe.rollouts is None:
        whole_answers = recipe.degrade is not None or recipe.repair is not None  # they are checked with those
        for section in ("warm_start",) if whole_answers else ("warm_start", "judges"):
            if getattr(recipe, section) is not None:
                reader.fail((section,), "is for roll-outs, and there are none", "add rollouts, or leave it out")
        return
    _rollout_checks(reader, recipe, needs)
    verifier_checks(reader, recipe.rollouts.verifier, ("rollouts", "verifier"))
    if recipe.judges is not None:
        judge_checks(reader, recipe)


def _rollout_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...]) -> None:
    if "samples" not in needs and recipe.sampling.every:
        reader.fail(("sampling", "every"), "is for samples drawn while the run goes on", "leave it out")
    if recipe.rollouts.groups == "all" and {"positives", "negatives"} <= set(needs) and "responses" not in needs:
        what = f"objective {recipe.objective['name']!r} learns nothing from prompts that are all right or all wrong"
        reader.fail(("rollouts", "groups"), what, "use mixed, or an objective on single responses (nsr, topr, nft)")
    if recipe.data.mix is not None or recipe.data.nat is not None:
        reader.fail(("rollouts",), "cannot go with data.mix or data.nat: never tried", "leave one of them out")
