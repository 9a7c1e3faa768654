"""Takes the time of some of a run's micro-batches on the real device; leaves nothing behind, on disk or in a store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from align.data.layout import ALL, CHEAP, NONE
from align.data.steps import Steps
from align.generation import draw
from align.objectives import Objective
from align.planning.tracing import stand_in
from align.planning.volume import Dealt, Volume
from align.recipe import Recipe
from align.scoring.logprobs import response_logps
from align.view import Scorer

MOST, FEWEST, ENOUGH = 6, 3, 40.0  # micro-batches that are timed; not more of them after so many seconds
# Time of a token by what is computed again of it, as a multiple of that under `none` (see `align.scoring.recompute`).
COST = {NONE: 1.0, CHEAP: 1 + 1 / 16, ALL: 1 + 1 / 3}
_TOKENS = 8  # of each answer that is sampled to take the time


@dataclass
class Timing:
    """Seconds on this machine."""

    device: str
    training: list[tuple[float, float]] = field(default_factory=list)  # (tokens times COST, seconds) of micro-batches
    scoring: list[tuple[float, float]] = field(default_factory=list)  # (tokens, seconds) of passes without gradient
    update: float = 0.0  # of an optimiser step
    answer_token: float = 0.0  # to sample the next token of all answers of a call


def cost(volume: Volume) -> float:
    """Tokens of a step, over all ranks, times what each costs by its recomputation."""
    tokens = sum(COST[mode] * count for mode, count in volume.tokens_by_recompute.items())
    return tokens / volume.looked_at


def take_time(
    recipe: Recipe, policy: nn.Module, args: TrainingArguments, objective: Objective, steps: Steps, volume: Volume
) -> Timing:
    """Forward and backward passes of micro-batches of all sizes, and an optimiser step that nothing keeps."""
    timing = Timing(args.device.type)
    scorer = Scorer(objective, None, None, recipe.train.seed, stand_in(objective, policy))
    smallest, *chosen = _spread(volume.micro_batches)

    def train(batch) -> None:
        logps, extras = scorer.policy(policy, batch, 0)
        sum((one * batch.mask).sum() for one in (logps, *extras.values())).mul(1e-6).backward()

    @torch.no_grad()
    def score(batch) -> None:
        response_logps(policy, batch)

    policy.train()
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16, cache_enabled=False):
        warm_up = steps.collate(list(smallest.rows), smallest.recompute).to(args.device)
        train(warm_up)
        begun = time.perf_counter()
        for number, one in enumerate(chosen):
            if number >= FEWEST and time.perf_counter() - begun > ENOUGH:
                break
            batch = steps.collate(list(one.rows), one.recompute).to(args.device)
            timing.training.append((one.tokens * COST[one.recompute], _seconds(train, batch)))
            timing.scoring.append((one.tokens, _seconds(score, batch)))
    timing.update = _update(policy, args)
    return timing


def time_to_sample(recipe: Recipe, policy: nn.Module, tokenizer, volume: Volume) -> float:
    """Seconds for the next token of all answers of a call; the prompts are among the rows."""
    options = recipe.sampling
    rows = [row for one in volume.micro_batches for row in one.rows if not row.retain]
    prompts = [list(row.prompt_ids) for row in rows[: max(1, options.batch_size // options.k)]]
    names = [str(index) for index in range(len(prompts))]

    def sample(tokens: int) -> None:
        draw(policy, tokenizer, prompts, names, replace(options, max_new_tokens=tokens), options.k)

    first, more = _seconds(sample, 1), _seconds(sample, 1 + _TOKENS)
    return max(more - first, 0.0) / _TOKENS


def _spread(micro_batches: list[Dealt]) -> list[Dealt]:
    """The smallest, to warm up, and up to MOST of all sizes, those in the middle of equally large parts."""
    ordered = sorted(micro_batches, key=lambda one: one.tokens)
    count = min(MOST, max(FEWEST, len(ordered)))
    return [ordered[0], *(ordered[(2 * part + 1) * len(ordered) // (2 * count)] for part in _outwards(count))]


def _outwards(count: int) -> list[int]:
    """Parts from the middle to both ends: whatever the probe has time for is spread over sizes."""
    return sorted(range(count), key=lambda part: abs(2 * part + 1 - count))


def _update(policy: nn.Module, args: TrainingArguments) -> float:
    """Of clipping and of the second optimiser step; the first one makes the state."""
    trained = [weight for weight in policy.parameters() if weight.requires_grad]
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, policy)
    optimiser = kind(trained, **options | {"lr": 0.0})  # the policy may be asked for samples yet

    def update(_: object) -> None:
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimiser.step()

    update(None)
    seconds = _seconds(update, None)
    for weight in trained:
        weight.grad = None
    return seconds


def _seconds(do: Callable, what: object) -> float:
    _synchronise()
    begun = time.perf_counter()
    do(what)
    _synchronise()
    return time.perf_counter() - begun


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
