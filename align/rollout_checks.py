"""Checks of the recipe sections warm_start, rollouts and judges, across their fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from align.data import sources
from align.errors import shorten
from align.models import check_path
from align.rollout_options import VERIFIERS, Verifier
from align.schema import Reader, nearest

if TYPE_CHECKING:
    from align.recipe import Recipe

_CODE_ONLY = ("timeout", "memory")


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


def verifier_checks(reader: Reader, verifier: Verifier, at: tuple) -> None:
    """Adds what is wrong with a verifier that is named at `at`."""
    if verifier.name not in VERIFIERS and "." not in verifier.name:
        fix = nearest(verifier.name, VERIFIERS)
        reader.fail((*at, "name"), f"{shorten(verifier.name)!r} is no verifier and no package.function", fix)
    if (verifier.name == "regex") != (verifier.pattern is not None):
        what = "is missing" if verifier.name == "regex" else f"is not for {verifier.name}"
        reader.fail((*at, "pattern"), what, "the verifier regex has a pattern, no other has")
    elif verifier.pattern is not None:
        try:
            re.compile(verifier.pattern)
        except re.error as error:
            reader.fail((*at, "pattern"), f"is no regular expression: {shorten(error)}", "mend it")
    for key in _CODE_ONLY:
        if verifier.name != "code" and getattr(verifier, key) != getattr(Verifier(), key):
            reader.fail((*at, key), f"is for code, not for {verifier.name}", "leave it out")


def judge_checks(reader: Reader, recipe: Recipe) -> None:
    """Adds what is wrong with the judges that the recipe names."""
    judges = recipe.judges
    if not judges.named() and reader.sound(("judges",)):
        reader.fail(("judges",), "names no judge", "give rollout, prm, llm or function, or leave it out")
    if judges.prm is not None and judges.prm.path is not None:
        problem = check_path(judges.prm.path)
        if problem:
            reader.fail(("judges", "prm", "path"), *problem)
        if judges.prm.bad_token is not None and judges.prm.good_token is None:
            reader.fail(("judges", "prm", "bad_token"), "goes with good_token", "give both, or none")
    if judges.llm is not None and judges.llm.url is not None and not judges.llm.url.startswith(("http://", "https://")):
        reader.fail(("judges", "llm", "url"), f"{shorten(judges.llm.url)} is no http address", "http://host:port/v1")
    if judges.function is not None and judges.function.name is not None and "." not in judges.function.name:
        reader.fail(("judges", "function", "name"), f"{shorten(judges.function.name)!r} is no package.function")
