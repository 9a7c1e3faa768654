"""Checks of what a recipe says of verifiers and judges, across their fields."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from align.errors import shorten
from align.judges.options import VERIFIERS, Verifier
from align.models import check_path
from align.schema import Reader, nearest

if TYPE_CHECKING:
    from align.recipe import Recipe

_CODE_ONLY = ("timeout", "memory")


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
