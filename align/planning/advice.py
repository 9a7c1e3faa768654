"""What to change in a recipe, or in how it is launched, so that it fits a device: each change planned by itself."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass

from align.data.layout import ALL, AUTO, ROOM, size
from align.planning.memory import CPU, SAMPLING, TRAINING, Setting
from align.planning.planner import Plan, Planner
from align.planning.sharding import stages_above
from align.recipe import Adapter, Recipe
from align.reference import FROZEN

ERROR = 0.15  # how far a plan may be off the real peak


@dataclass(frozen=True)
class Change:
    """One change, and the bytes a device then takes."""

    text: str  # as it is given on the command line
    total: int


def verdict(plan: Plan) -> str:
    """`fits`, `tight` (within the error of a plan), `does not fit`; `unknown` where the memory of a device is."""
    memory = plan.setting.memory
    if memory is None:
        return "unknown"
    if plan.memory.total > memory:
        return "does not fit"
    return "tight" if plan.memory.total * (1 + ERROR) > memory else "fits"


def changes(planner: Planner, plan: Plan) -> list[Change]:
    """What lowers the memory of a plan, most first."""
    found = []
    for text, recipe, setting in _variants(plan):
        total = planner.variant(recipe, setting, plan.layout).memory.total
        if total < plan.memory.total:
            found.append(Change(text, total))
    return sorted(found, key=lambda change: change.total)


def _variants(plan: Plan) -> Iterator[tuple[str, Recipe, Setting]]:
    recipe, setting = plan.recipe, plan.setting
    tokens = _tokens_that_fit(plan)
    if tokens:
        train = dataclasses.replace(recipe.train, tokens_per_device=tokens)
        yield f"train.tokens_per_device={tokens}", dataclasses.replace(recipe, train=train), setting
    if recipe.train.recompute != ALL:
        train = dataclasses.replace(recipe.train, recompute=ALL)
        yield f"train.recompute={ALL}", dataclasses.replace(recipe, train=train), setting
    if setting.ranks > 1 and setting.device != CPU:
        for zero in stages_above(setting.zero):
            yield f"--zero {zero.stage}", recipe, dataclasses.replace(setting, zero=zero)
    if recipe.model.adapter is None:
        adapter = Adapter()
        model = dataclasses.replace(recipe.model, adapter=adapter)
        own = recipe.reference.policy
        reference = dataclasses.replace(recipe.reference, policy="adapter_off" if own == FROZEN else own)
        text = f"model.adapter={{rank: {adapter.rank}}}"
        yield text, dataclasses.replace(recipe, model=model, reference=reference), setting
    if SAMPLING in plan.memory.passing and plan.memory.fullest == SAMPLING:
        answers = max(recipe.sampling.k, recipe.sampling.batch_size // 4)
        sampling = dataclasses.replace(recipe.sampling, batch_size=answers)
        yield f"sampling.batch_size={answers}", dataclasses.replace(recipe, sampling=sampling), setting


def _tokens_that_fit(plan: Plan) -> int | None:
    """The tokens of a micro-batch whose tensors fit beside what lasts; None if even the longest row would not."""
    memory, options = plan.memory, plan.recipe.train
    passing = sum(memory.passing[TRAINING].values())
    room = (plan.setting.memory or 0) / (1 + ERROR) - (memory.at(TRAINING) - passing)
    tokens = math.floor(options.tokens_per_device * room / passing / 64) * 64
    longest = max(size([row], plan.layout) for one in plan.volume.micro_batches for row in one.rows)
    least = math.ceil(longest / ROOM[ALL]) if options.recompute == AUTO else 16
    return tokens if max(least, 16) <= tokens < options.tokens_per_device else None
