"""A plan: a recipe's rows, counted; its memory, traced; its time, probed; what to change if it does not fit."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from align import models, processor
from align.data.load import Rows
from align.data.load_streams import Streams
from align.data.steps import Steps
from align.errors import UserError, shorten
from align.job import parts
from align.planning import probe, volume
from align.planning.duration import Span, rate
from align.planning.memory import CPU, Footprint, Memory, Setting
from align.planning.probe import Timing
from align.planning.sharding import OPTIMISER_BYTES, Weights
from align.planning.volume import AssumedSamples, Volume
from align.recipe import Recipe
from align.reference.store import STORE_OFF
from align.run import RunFolder


@dataclass(frozen=True)
class Plan:
    """What is known of a run before it is run."""

    recipe: Recipe
    setting: Setting
    layout: str
    weights: Weights
    volume: Volume
    memory: Memory
    times: dict[str, Span] = field(default_factory=dict)  # by part of the run; empty: no probe was made
    notes: tuple[str, ...] = ()


class Planner:
    """Plans one recipe, and its variants, on the same rows. Raises UserError for what the recipe or its rows lack."""

    def __init__(self, recipe: Recipe):
        if recipe.rollouts is not None:
            raise UserError("rollouts", "the rows are yet to be sampled", "plan when they are: data.sources=[...]")
        processor.prepare()
        self.recipe, self.run = recipe, RunFolder(recipe.output)
        self.objective = recipe.build_objective()
        self.args = parts.training_arguments(recipe, self.run)
        self.tokenizer = models.load_tokenizer(recipe.model)
        self.rows: Rows | Streams = parts.load_rows(recipe, self.tokenizer, self.objective)
        self.process = _resident()  # as a run's process is before it loads a model

    def plan(self, setting: Setting, *, probes: bool) -> Plan:
        """The plan of the recipe. `probes`: load the policy, and take the time of some micro-batches."""
        found, notes = self.variant(self.recipe, setting), list(_notes(self.recipe, self.rows))
        if not probes:
            return dataclasses.replace(found, notes=tuple(notes))
        if setting.memory is not None and setting.device == CPU and found.memory.total > setting.memory:
            notes.append("no time was taken: the model would not fit this machine")
            return dataclasses.replace(found, notes=tuple(notes))
        with contextlib.redirect_stdout(sys.stderr):  # what a run would say
            policy = parts.load_policy(self.recipe, self.args)
            layout = parts.choose_layout(self.recipe, policy)
        if layout != found.layout:
            found = self.variant(self.recipe, setting, layout)
        steps = self._steps(self.recipe, setting, layout)
        timing = probe.take_time(self.recipe, policy, self.args, self.objective, steps, found.volume)
        if "samples" in self.objective.needs:
            timing.answer_token = probe.time_to_sample(self.recipe, policy, self.tokenizer, found.volume)
        times = _times(self.recipe, self.rows, found.volume, timing, setting)
        return dataclasses.replace(found, times=times, notes=tuple(notes))

    def variant(self, recipe: Recipe, setting: Setting, layout: str | None = None) -> Plan:
        """The plan, without time, of a recipe that differs in nothing that its rows depend on."""
        footprint = Footprint(recipe, setting, layout=layout or recipe.data.layout, process=self.process)
        steps = self._steps(recipe, setting, footprint.layout)
        counted = volume.count(steps)
        memory = footprint.memory(counted, steps, self.rows.held_out)
        return Plan(recipe, setting, footprint.layout, footprint.weights, counted, memory)

    def _steps(self, recipe: Recipe, setting: Setting, layout: str) -> Steps:
        """The steps of a run on so many ranks."""
        sampler, steps = parts.plan_steps(recipe, self.rows, self.tokenizer, self.run, self.objective, layout)
        steps.world = setting.ranks
        if sampler is not None:
            steps.sampler = AssumedSamples(recipe.sampling, recipe.data.max_length)
        return steps


def _notes(recipe: Recipe, rows: Rows | Streams) -> list[str]:
    """What the figures leave out."""
    notes, optimiser = [], recipe.train.hf.get("optim", "adamw_torch")
    if optimiser not in OPTIMISER_BYTES:
        notes.append(f"train.hf.optim {shorten(optimiser)} is counted as AdamW")
    if isinstance(rows, Streams):
        notes.append("rows are streamed: tokens are those of the first steps")
    return notes


def _times(recipe: Recipe, rows: Rows | Streams, counted: Volume, timing: Timing, setting: Setting) -> dict[str, Span]:
    """Seconds of each part of a run. Communication between devices is not counted."""
    training, scoring = rate(timing.training), rate(timing.scoring)
    steps, tokens = counted.steps, counted.a_step("tokens") / setting.ranks
    a_step = training.times(probe.cost(counted) / setting.ranks)
    times = {"training": Span((a_step.seconds + timing.update) * steps, a_step.error * steps)}
    passes = 0.0  # tokens without gradient
    objective = recipe.build_objective()
    references = len({recipe.reference.policy, recipe.reference.samples, recipe.reference.behavior} - {None})
    first_epoch = steps if recipe.reference.store == STORE_OFF else steps / _epochs(rows, recipe)
    passes += references * tokens * first_epoch
    passes += counted.a_step("mismatched tokens") / setting.ranks * 2 * steps
    if objective.coupled and counted.most_micro_batches > 1:
        passes += tokens * steps
    if passes:
        times["references and looking ahead"] = scoring.times(passes)
    held_out = sum(sum(row.lengths()) for one in rows.held_out for row in one.rows) / setting.ranks
    often = 2 + (steps // recipe.eval.every if recipe.eval.every else 0)
    if held_out:
        times["measuring"] = scoring.times(held_out * often)
    if timing.answer_token:
        a_call = max(1, recipe.sampling.batch_size // recipe.sampling.k)
        again = 1.0 if recipe.sampling.every else _epochs(rows, recipe)  # how often the same draws serve
        draws = steps * counted.a_step("prompts") / again / setting.ranks
        times["sampling"] = Span(draws / a_call * recipe.sampling.max_new_tokens * timing.answer_token)
    return times


def _epochs(rows: Rows | Streams, recipe: Recipe) -> float:
    """How often a run goes through its rows, at least 1; of rows that are streamed, once."""
    return max(rows.feed(recipe).plan.epochs, 1.0) if isinstance(rows, Rows) else 1.0


def _resident() -> int:
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def memory_here(device: str) -> int:
    """Bytes of this machine, or of its first GPU."""
    if device == CPU:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return torch.cuda.get_device_properties(0).total_memory
