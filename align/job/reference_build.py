"""`align ref build`: scores what a recipe's run would ask of its references, ahead of it.

Rows are scored in the micro-batches in which the run will have them: what is stored is then, on as many ranks, what
the run itself would have computed, to the last bit (without samples: they do not exist yet, and a run stores them
when it has drawn them). Rows that the run's steps do not reach follow.
"""

from __future__ import annotations

import copy
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from accelerate.utils import gather_object
from transformers.utils import logging as transformers_logging

from align import models, processor
from align.data.collate import MicroBatch
from align.data.plan import PlannedFeed, StepPlan
from align.data.steps import Steps
from align.errors import UserError, is_first_process
from align.job import parts
from align.job.parts import say
from align.job.references import load_references
from align.recipe import Recipe
from align.reference import References
from align.reference.store import STORE_OFF, store_folder
from align.run import RunFolder
from align.scoring.head import causal_lm

_SECONDS = 2.0  # between two progress lines


@dataclass
class _Done:
    """What this rank has scored."""

    responses: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    told: float = field(default_factory=time.monotonic)


def build(recipe: Recipe) -> None:
    """Fills the store of a recipe. Raises UserError, also if the store cannot be written."""
    if not recipe.reference.policy and not recipe.reference.behavior:
        what = f"{recipe.objective['name']!r} asks no reference for log-probs"
        raise UserError("objective", what, "there is nothing to build")
    if recipe.reference.store == STORE_OFF:
        raise UserError("reference.store", "is off", "set reference.store to auto or a folder")
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        what = "a reference's log-probs are built without DeepSpeed"
        raise UserError("accelerate", what, "use DDP (launch/ddp.yaml), or let the run fill the store")
    run = RunFolder(recipe.output)
    args = parts.training_arguments(recipe, run)
    processor.prepare()
    transformers_logging.disable_progress_bar()
    objective, tokenizer = recipe.build_objective(), models.load_tokenizer(recipe.model)
    rows = parts.load_rows(recipe, tokenizer, objective)
    policy = parts.load_policy(recipe, args).eval()
    layout = parts.choose_layout(recipe, policy)
    references = load_references(recipe, policy, args, models.weights_hash(causal_lm(policy)), layout)
    _, steps = parts.plan_steps(recipe, rows, tokenizer, run, objective, layout)
    steps.sampler = None
    policy, done = policy.to(args.device), _Done()
    with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bf16):  # as in a run
        for batch, share in _batches(steps, recipe.train.seed):
            part = batch.for_objective(objective.roles()).to(args.device)
            if references.policy is not None:
                references.logps(policy, part)
            if references.behavior is not None:
                references.behavior_logps(policy, part)
            _check_written(references)
            _tell(done, part, share)
    responses, tokens, forwards = (sum(n) for n in zip(*gather_object([_numbers(done, references)]), strict=True))
    seconds = time.monotonic() - done.started
    say(
        f"{responses:,} responses, {tokens:,} tokens looked up, {forwards:,} forwards, {seconds:.1f} s · "
        f"{store_folder(recipe.reference.store)}"
    )


def _batches(steps: Steps, seed: int) -> Iterator[tuple[MicroBatch, float]]:
    """This rank's micro-batches of the run and of the rows that it does not reach, and the share that is done."""
    feed = steps.feed
    if not isinstance(feed, PlannedFeed):  # a stream has the rows of the run alone, and each step once
        for step in range(len(steps)):
            share = steps[step]
            for batch in [*share.batches, *share.mismatched]:
                yield batch, (step + 1) / len(steps)
        return
    seen: set[int] = set()  # rows of the run
    for step in range(len(steps)):
        rows = feed.plan.rows(step)
        if steps.wants_mismatched or not seen.issuperset(rows):  # else a later epoch that asks for the same again
            seen.update(rows)
            share = steps[step]
            for batch in [*share.batches, *share.mismatched]:
                yield batch, len(seen) / len(feed.all)
    others = feed.rest()
    if others:
        plan = StepPlan(
            [1.0] * len(others), prompts_per_step=feed.plan.prompts_per_step, epochs=1, max_steps=None, seed=seed
        )
        rest = copy.copy(steps)
        rest.feed, rest.retain, rest.wants_mismatched = PlannedFeed(others, plan), None, False
        for step in range(len(rest)):
            for batch in rest[step].batches:
                yield batch, (len(seen) + (step + 1) / len(rest) * len(others)) / len(feed.all)


def _check_written(references: References) -> None:
    for store in references.stores.values():
        if store.problem:
            raise UserError("reference.store", f"{store.folder}: {store.problem}", "make room, or name another folder")


def _tell(done: _Done, batch: MicroBatch, share: float) -> None:
    done.responses += len(batch.role) if batch.rows else 0
    done.tokens += int(batch.mask.sum()) if batch.rows else 0
    if is_first_process() and time.monotonic() - done.told > _SECONDS:
        done.told, seconds = time.monotonic(), time.monotonic() - done.started
        line, live = f"{share:.0%} of the rows · {done.responses / seconds:.0f} responses/s", sys.stdout.isatty()
        print(f"\r{line}\033[K" if live else line, end="" if live else "\n", flush=True)


def _numbers(done: _Done, references: References) -> tuple[int, int, int]:
    return done.responses, done.tokens, references.forwards
