"""AlignTrainer: the only loop. transformers.Trainer with an injected objective and reference.

One item of its data loader is one optimiser step's share of this rank: a list of micro-batches. Losses are
summed and divided by the number of units in the whole step over all ranks, so how the step is cut into
micro-batches and ranks cannot change it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate.utils import AutocastKwargs, gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PrinterCallback, Trainer

from align.data.collate import MicroBatch
from align.data.steps import Steps, StepShare
from align.errors import shorten
from align.interruption import Interruption
from align.objectives import Batch, Objective, WholeStep, join_step
from align.objectives._units import unit_groups, unit_weights
from align.run import RunFolder
from align.scoring.head import causal_lm
from align.scoring.routing import routing_of
from align.start_check import Drift, StartCheck
from align.view import Scorer, bare_view, common_metrics

if TYPE_CHECKING:
    from align.guard.anchor import Anchor
    from align.recipe import Retain


class _FromStep(Sampler):
    """The steps that are still to do, asked of the trainer when iteration begins."""

    def __init__(self, trainer: AlignTrainer):
        self.trainer = trainer

    def __len__(self) -> int:
        return len(self.trainer.train_dataset)

    def __iter__(self):
        return iter(range(self.trainer.state.global_step, len(self)))


@dataclass
class _Totals:
    """What a rank adds up during a step."""

    tokens: int = 0
    forwards: int = 0  # micro-batches through a reference model
    sums: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    counts: defaultdict[str, int] = field(default_factory=partial(defaultdict, int))
    problems: list[str] = field(default_factory=list)
    interrupted: int | None = None  # the signal that told a rank to end
    worst: tuple[MicroBatch, Drift] | None = None  # where policy and reference differ most, though they must not

    def look_at(self, batch: MicroBatch, drift: Drift | None) -> None:
        if drift is not None and (self.worst is None or drift.nats > self.worst[1].nats):
            self.worst = batch, drift


class AlignTrainer(Trainer):
    """Trains `model` on `steps` with `objective`; one line of `run.metrics` an optimiser step."""

    def __init__(
        self,
        *,
        objective: Objective,
        scorer: Scorer,
        retain: Retain,
        steps: Steps,
        run: RunFolder,
        start_check: StartCheck | None,
        **kwargs,
    ):
        super().__init__(train_dataset=steps, **kwargs)
        self.objective, self.scorer, self.retain, self.run = objective, scorer, retain, run
        self.start_check = start_check  # None: policy and reference need not agree at the start
        self.pulls = scorer.pulls  # None: nobody looks at gradients
        self.anchor: Anchor | None = None  # the guard's, once it is needed
        self.memory: dict[str, float] = {}  # what the objective carries from step to step
        self.step_metrics: dict[str, float] = {}
        self.interruption, self.interrupted = Interruption(), None  # of this rank; of any, told at the end of a step
        self.remove_callback(PrinterCallback)
        # weights cast for a pass without gradient, or before running means were swapped in, must not be used again
        self.accelerator.autocast_handler = AutocastKwargs(cache_enabled=False)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model=None) -> None:
        """Trainer's own leaves only the first of several adapters active, and able to learn."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        routing = routing_of(causal_lm(self.model))
        if routing is not None:
            self.model.base_model.set_adapter(list(routing.adapters.values()))

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by accelerate: `Steps` has dealt the rows to ranks already."""
        return DataLoader(self.train_dataset, batch_size=None, sampler=_FromStep(self))

    def training_step(self, model, inputs: StepShare, num_items_in_batch=None) -> Tensor:
        """Forward and backward of all micro-batches of a step; the gradients meet at the last one."""
        started = time.monotonic()
        model.train()
        totals, forwards = _Totals(), self.scorer.forwards()
        batches = [batch.to(self.args.device) for batch in inputs.batches]
        units = self._units(batches)
        with self.accelerator.autocast():
            others, steps, scored = self._look_ahead(model, inputs, batches)
        self._hold(model, totals)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            self.accelerator.sync_gradients = is_last
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                with self.accelerator.autocast():
                    known = others[index] if others else self.scorer.others(model, batch)
                    logps, extras = scored or self.scorer.policy(model, batch, inputs.number)
                    step = steps[index] if steps else None
                    view = self.scorer.view(batch, logps, extras, known, step, self._progress(inputs))
                    loss = self._loss(batch, logps, view, units, totals)
                if is_last:  # before its backward pass: under DeepSpeed that one takes the optimiser step
                    totals.forwards, totals.interrupted = self.scorer.forwards() - forwards, self.interruption.noted
                    worst, totals = totals.worst, self._over_ranks(totals)
                    self.interrupted = totals.interrupted
                    if totals.worst is not None:
                        with self.accelerator.autocast():
                            raise self.start_check.error(model, *(worst or (batch, None)))
                self._backward(loss)
        loss, seconds = totals.sums.pop("loss", 0.0), time.monotonic() - started
        self.step_metrics = {"loss": loss, "tokens": totals.tokens, "tokens_per_second": totals.tokens / seconds}
        if self.scorer.references is not None:
            self.step_metrics["reference/forwards"] = totals.forwards
        self.step_metrics |= {name: value / totals.counts[name] for name, value in totals.sums.items()}
        if self.pulls is not None:
            self.step_metrics |= self.pulls.end(partial(self.accelerator.reduce, reduction="sum"), self.args.device)
        return torch.tensor(loss, device=self.args.device)

    def _backward(self, loss: Tensor) -> None:
        extra = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
        # DDP and ZeRO average over ranks; the loss is divided by the units of all ranks already
        self.accelerator.backward(loss * self.accelerator.num_processes, **extra)

    def _hold(self, model, totals: _Totals) -> None:
        """The guard's anchor: forward and backward of its own micro-batches, whose gradients wait for the others'."""
        if self.anchor is None:
            return
        weight = self.anchor.weight(self.pulls.largest)
        self.accelerator.sync_gradients = False
        for share in self.anchor.losses(model):
            with self.accelerator.no_sync(model):
                with self.accelerator.autocast():
                    loss = weight * share()
                totals.sums["loss"] += loss.item()
                self._backward(loss)

    def _look_ahead(self, model, share: StepShare, batches: list[MicroBatch]) -> tuple[list, list[WholeStep], tuple]:
        """What couples the micro-batches of a step, from a first pass over all of them.

        Returns (others' log-probs of each micro-batch, its WholeStep, what the policy's pass gave); nothing, and it
        costs nothing, for objectives that are not coupled. The policy's pass is without gradient, and thrown away,
        unless there is a single micro-batch: then it is the one that is learned from. (Under dropout the two passes
        have other masks, so there, and only there, the cut of a step has a say.)
        """
        if not self.objective.coupled and not share.mismatched:
            return [], [], ()
        is_single, scored = len(batches) == 1, ()
        others, parts = [], []
        for batch in batches:
            others.append(self.scorer.others(model, batch))
            parts.append({})
            if self.objective.coupled:
                with torch.set_grad_enabled(is_single):
                    scored = self.scorer.policy(model, batch, share.number)
                view = self.scorer.view(batch, *scored, others[-1], progress=self._progress(share))
                parts[-1] = {} if view is None else self.objective.collect(view)
        ratios = [self.scorer.mismatched_log_ratios(model, batch.to(self.args.device)) for batch in share.mismatched]
        if ratios:
            parts[0] = parts[0] | {"mismatched": torch.cat(ratios)}
        own = [{name: values.cpu() for name, values in part.items()} for part in parts]
        everyone = [part for rank in gather_object([own]) for part in rank]
        steps, self.memory = join_step(self.objective, everyone, self.memory)
        first = self.accelerator.process_index * len(own)
        own_steps = [step.to(self.args.device) for step in steps[first : first + len(own)]]
        return others, own_steps, scored if is_single else ()

    def _progress(self, share: StepShare) -> float:
        """The share of the run's optimiser steps that are done."""
        return share.number / len(self.train_dataset)

    def _units(self, batches: list[MicroBatch]) -> tuple[Counter, int]:
        """(units of the objective by `unit_groups`, tokens of the retain term, at least 1) of the step, over ranks."""
        objective, retain = Counter(), 0
        for batch in (batch for batch in batches if batch.rows):
            part = batch.for_objective(self.objective.roles())
            if part.rows:
                view = bare_view(part, part.mask.float())
                objective.update(unit_groups(view, self.objective.normalize_by).tolist())
            retain += int(batch.mask[batch.is_retained(self.retain.positives)].sum())
        counts = gather_object([(objective, retain)])
        return sum((first for first, _ in counts), Counter()), max(sum(second for _, second in counts), 1)

    def _loss(
        self, batch: MicroBatch, logps: Tensor, view: Batch | None, units: tuple[Counter, int], totals: _Totals
    ) -> Tensor:
        """What a micro-batch adds to the loss of the step; adds what is logged to `totals`."""
        if not batch.rows:
            return logps.sum() * 0.0
        retained = batch.is_retained(self.retain.positives)
        retain_nll = -logps[retained][batch.mask[retained]]  # (tokens of the retain term,)
        loss = retain_nll.sum() * (self.retain.weight / units[1])
        metrics = {"retain/nll": retain_nll.detach()}
        if view is not None:
            result = self.objective(view)
            weights = unit_weights(view, self.objective.normalize_by)
            assert result.losses.shape == weights.shape, "one loss a unit of normalize_by"
            groups = unit_groups(view, self.objective.normalize_by)
            for group, count in units[0].items():
                loss = loss + (result.losses * weights)[groups == group].sum() / count
            metrics |= common_metrics(view, self.samples_are_fresh) | result.metrics
            if self.start_check is not None and self.state.global_step == 0:
                totals.look_at(batch, self.start_check.drift(view))
        if not torch.isfinite(loss):
            totals.problems.append(_non_finite(loss, logps, batch))
        totals.sums["loss"] += loss.item()
        totals.tokens += batch.num_tokens
        for name, values in metrics.items():
            totals.sums[name] += values.sum().item()
            totals.counts[name] += values.numel()
        return loss

    @property
    def samples_are_fresh(self) -> bool:
        """Whether samples come from the current policy (drawn again and again), not from the start."""
        sampler = self.train_dataset.sampler
        return sampler is not None and sampler.config.every > 0

    def _over_ranks(self, totals: _Totals) -> _Totals:
        """The totals of all ranks. Raises FloatingPointError, on all of them, if a loss was not finite."""
        merged = _Totals()
        for part in gather_object([totals]):
            merged.tokens += part.tokens
            merged.forwards += part.forwards
            merged.problems += part.problems
            merged.worst = merged.worst or part.worst
            merged.interrupted = merged.interrupted or part.interrupted
            for name, value in part.sums.items():
                merged.sums[name] += value
                merged.counts[name] += part.counts[name]
        if merged.problems:
            fix = "look at these rows, or lower train.learning_rate"
            raise FloatingPointError(f"step {self.state.global_step + 1}: {'; '.join(merged.problems[:3])}; {fix}")
        merged.sums = defaultdict(float, {k: v for k, v in merged.sums.items() if k == "loss" or merged.counts[k]})
        return merged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Turns the loop's own log of a step into a line of metrics.jsonl."""
        if "loss" not in logs:  # the summary at the end
            return
        step, grad_norm = self.state.global_step, float(logs.get("grad_norm", 0.0))
        if not math.isfinite(grad_norm):
            raise FloatingPointError(f"step {step}: the gradient norm is {grad_norm}; lower train.learning_rate")
        values = {"step": step, **self.step_metrics, "lr": logs["learning_rate"], "grad_norm": grad_norm}
        if self.is_world_process_zero():
            self.run.add_metrics(values)
        super().log({key: value for key, value in values.items() if key != "step"})


def _non_finite(loss: Tensor, logps: Tensor, batch: MicroBatch) -> str:
    """Which prompts a loss that is no number came from."""
    broken = ~torch.isfinite(logps.detach()).all(-1)  # (N,)
    guilty = set(batch.prompt[broken].tolist()) or set(range(len(batch.rows)))
    examples = [batch.rows[index].example for index in sorted(guilty)]
    names = [f"{example.place} {shorten(example.prompt, 40)}" for example in examples[:5]]
    more = f" and {len(examples) - 5} more" if len(examples) > 5 else ""
    return f"the loss is {loss.item()}; prompts: {', '.join(names)}{more}"
