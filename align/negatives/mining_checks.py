"""Checks of the recipe section mining, across its fields."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from align.data import sources
from align.errors import shorten
from align.judges.checks import verifier_checks
from align.models import check_path
from align.negatives import strategies
from align.negatives.mining_options import IMPLICIT, OF_POLICY, OF_REFERENCE, REWARD, SCORES, Mining
from align.schema import Reader, nearest

if TYPE_CHECKING:
    from align.recipe import Recipe

_BELOW_0 = (*OF_POLICY, *OF_REFERENCE)


def check(reader: Reader, recipe: Recipe) -> None:
    """Adds to `reader` what is wrong in the section, and between it and the rest."""
    mining = recipe.mining
    if mining is None:
        return
    _candidate_checks(reader, mining)
    _score_checks(reader, mining)
    _strategy_checks(reader, mining)
    _model_checks(reader, mining)
    if mining.verifier is not None:
        verifier_checks(reader, mining.verifier, ("mining", "verifier"))


def resolve(recipe: Recipe) -> Recipe:
    """The recipe with every value of its strategy."""
    if recipe.mining is None:
        return recipe
    strategy = strategies.resolved(recipe.mining.strategy)
    return dataclasses.replace(recipe, mining=dataclasses.replace(recipe.mining, strategy=strategy))


def _candidate_checks(reader: Reader, mining: Mining) -> None:
    if not mining.own and not mining.files and not mining.neighbours and reader.sound(("mining", "own")):
        reader.fail(("mining",), "names no candidates", "own: true, files or neighbours")
    for index, path in enumerate(mining.files):
        at = ("mining", "files", index)
        if not reader.sound(at):
            continue
        if not sources.is_local(path):
            reader.fail(at, f"{shorten(path)} is no file", "give files of rows, as align sample writes them")
        elif problem := sources.check(path, "train"):
            reader.fail(at, *problem)


def _score_checks(reader: Reader, mining: Mining) -> None:
    if not mining.scores:
        reader.fail(("mining", "scores"), "names no score", f"one of {', '.join(SCORES)}")
    for index, name in enumerate(mining.scores):
        at = ("mining", "scores", index)
        if not reader.sound(at):
            continue
        if name not in SCORES:
            reader.fail(at, f"{shorten(name)!r} is no score", nearest(name, SCORES))
        elif name in mining.scores[:index]:
            reader.fail(at, f"{name} is named twice", "leave one of them out")
        elif name in (*OF_REFERENCE, IMPLICIT) and mining.policy is None:
            what = f"{name} compares with a reference, but without mining.policy the policy is the reference"
            reader.fail(at, what, "name a finished run, or a model, in mining.policy")


def _strategy_checks(reader: Reader, mining: Mining) -> None:
    at, name = ("mining", "strategy"), mining.strategy.get("name")
    if name not in strategies.STRATEGIES:
        what = "is missing" if name is None else f"{shorten(name)!r} is no strategy"
        reader.fail((*at, "name"), what, nearest(str(name or ""), tuple(strategies.STRATEGIES)))
        return
    cls, options = strategies.STRATEGIES[name], {key: one for key, one in mining.strategy.items() if key != "name"}
    before, values = len(reader.errors), reader.values(cls, options, at)
    if len(reader.errors) > before:
        return
    built = cls(**values)
    if isinstance(built, strategies.RunnerUp) and built.first >= built.last:
        reader.fail((*at, "last"), f"{built.last:g} is not above first, {built.first:g}", "give a larger one")
    ranked_by = mining.scores[0] if mining.scores else None
    if "above 0" in cls.needs and ranked_by in _BELOW_0:
        reader.fail(at, f"{name} compares shares of scores above 0; {ranked_by} is below", "use margin")


def _model_checks(reader: Reader, mining: Mining) -> None:
    """Models that are named are there and are used by something."""
    for key, is_asked, by in (
        ("policy", mining.asks_policy or mining.asks_reference, "a score of log-probs or ches_keep"),
        ("encoder", mining.asks_encoder, "similarity, relevance, neighbours or clusters"),
        ("reward_model", REWARD in mining.scores, f"the score {REWARD}"),
    ):
        path = getattr(mining, key)
        if path is not None and not is_asked:
            reader.fail(("mining", key), f"is for {by}, and none is asked for", "leave it out")
        elif path is not None and (problem := check_path(path)) and not (key == "policy" and is_run(path)):
            reader.fail(("mining", key), *problem)
    if REWARD in mining.scores and mining.reward_model is None:
        reader.fail(("mining", "reward_model"), f"is missing, but the score {REWARD} asks for it", "name a model")


def is_run(path: str) -> bool:
    """Whether a path names the folder of a finished run, in place of a model."""
    from align.run import RunFolder

    run = RunFolder(path)
    return run.recipe.is_file() and run.final.is_dir()
