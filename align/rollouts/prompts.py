"""The prompts that are sampled from: of each round, and those on which nothing is trained."""

from __future__ import annotations

import dataclasses
import hashlib

from align.data import sources
from align.data.examples import Example
from align.data.ledger import Ledger
from align.errors import UserError
from align.recipe import Recipe


def train_prompts(recipe: Recipe, number: int, ledger: Ledger) -> list[Example]:
    """The prompts of round `number`: all, or another part of the training rows in each round, over and over."""
    found, wanted = examples_of(recipe, held_out=False, ledger=ledger), recipe.rollouts.prompts
    if wanted is None or wanted >= len(found):
        return found
    return [found[(number * wanted + index) % len(found)] for index in range(wanted)]


def held_out_prompts(recipe: Recipe, ledger: Ledger) -> list[Example]:
    """The first `rollouts.held_out` prompts that nothing is trained on."""
    found = examples_of(recipe, held_out=True, ledger=ledger)[: recipe.rollouts.held_out]
    if recipe.rollouts.held_out and not found:
        raise UserError("rollouts.held_out", "no prompt is held out", "give eval.sources, or eval.holdout above 0")
    return found


def examples_of(recipe: Recipe, *, held_out: bool, ledger: Ledger) -> list[Example]:
    """Prompts with all their responses, each once, in an order that the seed decides."""
    named = recipe.eval.sources if held_out else recipe.data.sources
    found: dict[str, Example] = {}
    for source in named:
        read = sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=ledger)
        if not held_out and not source.path.startswith(sources.BUILTIN):
            read = sources.split_holdout(read, recipe.eval.holdout)[0]
        for example in read:
            found[example.key] = _joined(found[example.key], example) if example.key in found else example
    if held_out:
        for source in recipe.data.sources:
            if not source.path.startswith(sources.BUILTIN) and recipe.eval.holdout:
                read = sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=Ledger())
                found |= {example.key: example for example in sources.split_holdout(read, recipe.eval.holdout)[1]}
    order = f"{0 if held_out else recipe.train.seed}/"  # all seeds are measured on the same prompts
    return sorted(found.values(), key=lambda one: hashlib.sha256((order + one.key).encode()).digest())


def _joined(one: Example, other: Example) -> Example:
    """A prompt that two rows have, with what both say: what is right by one of them is right."""
    known = {(response.role, response.said) for response in one.responses}
    more = [response for response in other.responses if (response.role, response.said) not in known]
    return dataclasses.replace(one, responses=(*one.responses, *more)) if one.prompt != "" else one
