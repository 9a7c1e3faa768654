"""Checks of the recipe sections degrade and repair, and of examples in the prompt, across their fields."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.errors import shorten
from align.judges.checks import judge_checks, verifier_checks
from align.models import check_path
from align.schema import Reader, nearest

if TYPE_CHECKING:
    from align.recipe import Recipe


def check(reader: Reader, recipe: Recipe, data: dict) -> None:
    """Adds to `reader` what is wrong in these sections, and between them and the rest."""
    _in_context_checks(reader, recipe)
    named = [section for section in ("rollouts", "mining", "degrade", "repair") if getattr(recipe, section) is not None]
    if len(named) > 1:
        reader.fail((named[1],), f"cannot go with {named[0]}: each makes rows by itself", "leave one of them out")
        return
    if recipe.degrade is not None:
        _degrade_checks(reader, recipe, data)
    if recipe.repair is not None:
        _repair_checks(reader, recipe, data)


def _in_context_checks(reader: Reader, recipe: Recipe) -> None:
    shown = recipe.sampling.in_context
    if shown is None:
        return
    at = ("sampling", "in_context")
    if not shown.positives and not shown.negatives:
        reader.fail(at, "shows no examples", "give positives or negatives, or leave it out")
    elif shown.analysis and not (shown.positives and shown.negatives):
        reader.fail((*at, "analysis"), "needs positives and negatives to set apart", "give both, or analysis: 0")


def _degrade_checks(reader: Reader, recipe: Recipe, data: dict) -> None:
    how, given = recipe.degrade, data.get("degrade") or {}
    if recipe.sampling.every:
        reader.fail(("sampling", "every"), "is for samples drawn while a run goes on", "leave it out")
    if recipe.sampling.in_context is not None:
        reader.fail(("sampling", "in_context"), "shows what degrade takes away", "leave one of them out")
    if how.model is not None:
        problem = check_path(how.model)
        if problem:
            reader.fail(("degrade", "model"), *problem)
    if how.kept_by == "verifier":
        if how.verifier is None:
            reader.fail(("degrade", "verifier"), "is missing", "kept_by verifier needs one: verifier: {name: numeric}")
        else:
            verifier_checks(reader, how.verifier, ("degrade", "verifier"))
        if "gap" in given:
            reader.fail(("degrade", "gap"), "a verifier says right or wrong, no gap", "leave it out")
    elif how.verifier is not None:
        reader.fail(("degrade", "verifier"), f"is not for kept_by {how.kept_by}", "leave it out")
    _judges_are_used(reader, recipe, "degrade.kept_by: judge", is_used=how.kept_by == "judge")


def _repair_checks(reader: Reader, recipe: Recipe, data: dict) -> None:
    how, given = recipe.repair, data.get("repair") or {}
    _judges_are_used(reader, recipe, "repair.cascade", is_used=bool(how.cascade))
    known = list(recipe.judges.named()) if recipe.judges is not None else []
    for index, name in enumerate(how.cascade):
        if not isinstance(name, str) or name not in known:
            what = f"{shorten(name)!r} is no judge of this recipe"
            reader.fail(("repair", "cascade", index), what, nearest(str(name), known) if known else "name it in judges")
    for name in known if how.cascade else ():
        if name not in how.cascade:
            reader.fail(("judges", name), "is not in repair.cascade", "name it there, or leave it out")
    if not how.cascade:
        if how.suspects == "all":
            reader.fail(("repair", "suspects"), "all, but there is no cascade to ask", "name judges in repair.cascade")
        if "sure" in given:
            reader.fail(("repair", "sure"), "is for a cascade of judges", "leave it out")
    elif how.suspects == "all":
        for key in ("folds", "copies", "agree"):
            if key in given:
                reader.fail(("repair", key), "is for margins, but suspects: all asks the cascade alone", "leave it out")
        if how.action == "reweight":
            what = "reweight weighs by the share of copies, but suspects: all has none"
            reader.fail(("repair", "action"), what, "drop, flip or relabel")


def _judges_are_used(reader: Reader, recipe: Recipe, by: str, *, is_used: bool) -> None:
    """The section judges is there if it is used; here its judges score whole answers, as one step."""
    judges = recipe.judges
    if judges is None:
        if is_used:
            reader.fail(("judges",), f"is missing, but {by} asks for it", "give judges.llm, prm or function")
        return
    if not is_used:
        reader.fail(("judges",), f"is used by {by}, which asks for none", "leave the section out")
        return
    judge_checks(reader, recipe)
    if judges.rollout is not None:
        reader.fail(("judges", "rollout"), "goes on from steps; here whole answers are judged", "llm, prm or function")
    if judges.segment != type(judges)().segment:
        reader.fail(("judges", "segment"), "whole answers are judged, not steps", "leave it out")
