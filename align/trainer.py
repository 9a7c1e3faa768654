"""AlignTrainer: the only loop. transformers.Trainer with an injected objective and reference.

One item of its data loader is one optimiser step's share of this rank: a list of micro-batches. Losses are
summed and divided by the number of units in the whole step over all ranks, so how the step is cut into
micro-batches and ranks cannot change it.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from dataclasses import dataclass, field
from functools import partial

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer

from align.data.collate import MicroBatch, collate, share_out
from align.data.stream import StepPlan
from align.data.tokenize import TokenizedRow
from align.errors import shorten
from align.negatives.sampling import Sampler as PolicySampler
from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch, Objective, count_units, unit_weights
from align.reference import References
from align.run import RunFolder
from align.scoring.logprobs import response_logps

ROLE_NAMES = {POSITIVE: "positive", NEGATIVE: "negative", SAMPLE: "sample"}


class Steps(Dataset):
    """Item s: the micro-batches of optimiser step s that fall to this rank."""

    def __init__(
        self,
        rows: list[TokenizedRow],
        plan: StepPlan,
        sampler: PolicySampler | None,
        *,
        retain: tuple[list[TokenizedRow], StepPlan] | None,
        rank: int,
        world: int,
        tokens_per_device: int,
        pad_id: int,
    ):
        self.rows, self.plan, self.sampler, self.retain = rows, plan, sampler, retain
        self.rank, self.world, self.tokens_per_device, self.pad_id = rank, world, tokens_per_device, pad_id

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, step: int) -> list[MicroBatch]:
        found = (self.sampler.row(i) if self.sampler else self.rows[i] for i in self.plan.rows(step))
        rows: list[TokenizedRow] = [row for row in found if row is not None]
        if self.retain is not None:
            retain_rows, retain_plan = self.retain
            rows += [retain_rows[index] for index in retain_plan.rows(step)]
        shares = share_out(rows, world=self.world, tokens_per_device=self.tokens_per_device)
        return [collate(group, self.pad_id) for group in shares[self.rank]]


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
    sums: defaultdict[str, float] = field(default_factory=partial(defaultdict, float))
    counts: defaultdict[str, int] = field(default_factory=partial(defaultdict, int))
    problems: list[str] = field(default_factory=list)


class AlignTrainer(Trainer):
    """Trains `model` on `steps` with `objective`; one line of `run.metrics` an optimiser step."""

    def __init__(
        self,
        *,
        objective: Objective,
        references: References | None,
        retain_weight: float,
        steps: Steps,
        run: RunFolder,
        **kwargs,
    ):
        super().__init__(train_dataset=steps, **kwargs)
        self.objective, self.references, self.retain_weight, self.run = objective, references, retain_weight, run
        self.step_metrics: dict[str, float] = {}
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader:
        """Not prepared by accelerate: `Steps` has dealt the rows to ranks already."""
        return DataLoader(self.train_dataset, batch_size=None, sampler=_FromStep(self))

    def training_step(self, model, inputs: list[MicroBatch], num_items_in_batch=None) -> Tensor:
        """Forward and backward of all micro-batches of a step; the gradients meet at the last one."""
        started = time.monotonic()
        model.train()
        totals = _Totals()
        units = self._units(inputs)
        for index, batch in enumerate(inputs):
            is_last = index == len(inputs) - 1
            self.accelerator.sync_gradients = is_last
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(model):
                with self.compute_loss_context_manager():
                    loss = self._loss(model, batch.to(self.args.device), units, totals)
                if is_last:  # before its backward pass: under DeepSpeed that one takes the optimiser step
                    totals = self._over_ranks(totals)
                extra = {"scale_wrt_gas": False} if self.is_deepspeed_enabled else {}
                # DDP and ZeRO average over ranks; the loss is divided by the units of all ranks already
                self.accelerator.backward(loss * self.accelerator.num_processes, **extra)
        loss, seconds = totals.sums.pop("loss", 0.0), time.monotonic() - started
        self.step_metrics = {"loss": loss, "tokens": totals.tokens, "tokens_per_second": totals.tokens / seconds}
        self.step_metrics |= {name: value / totals.counts[name] for name, value in totals.sums.items()}
        return torch.tensor(loss, device=self.args.device)

    def _units(self, inputs: list[MicroBatch]) -> tuple[int, int]:
        """(units of the objective, tokens of the retain term) of the whole step, over all ranks; at least 1 each."""
        objective = retain = 0
        for batch in (batch for batch in inputs if batch.rows):
            part = batch.for_objective()
            objective += count_units(_view(part, part.mask.float()), self.objective.normalize_by)
            retain += len(batch.targets) - len(part.targets)
        counts = gather_object([(objective, retain)])
        return max(sum(first for first, _ in counts), 1), max(sum(second for _, second in counts), 1)

    def _loss(self, model, batch: MicroBatch, units: tuple[int, int], totals: _Totals) -> Tensor:
        """What a micro-batch adds to the loss of the step; adds what is logged to `totals`."""
        part = batch.for_objective()
        ref_logps = None
        if self.references is not None:
            ref_logps = self.references.logps(model, part if len(part.role) else batch)  # ZeRO-3: on every rank
        logps = response_logps(model, batch)  # (N, T)
        if not batch.rows:
            return logps.sum() * 0.0
        n = len(part.role)
        retain_nll = -logps[n:][batch.mask[n:]]  # (tokens of the retain term,)
        loss = retain_nll.sum() * (self.retain_weight / units[1])
        metrics = {"retain/nll": retain_nll.detach()}
        if n:
            view = _view(part, logps[:n, : part.mask.shape[1]], ref_logps)
            result = self.objective(view)
            weights = unit_weights(view, self.objective.normalize_by)
            assert result.losses.shape == weights.shape, "one loss a unit of normalize_by"
            loss = loss + (result.losses * weights).sum() / units[0]
            metrics |= _common_metrics(view, self.samples_are_fresh) | result.metrics
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
            merged.problems += part.problems
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


def _view(batch: MicroBatch, logps: Tensor, ref_logps: Tensor | None = None) -> Batch:
    """What an objective sees of a micro-batch."""
    return Batch(
        logps=logps, mask=batch.mask, role=batch.role, prompt=batch.prompt, pairs=batch.pairs,
        ref_logps=ref_logps, reward=batch.reward, weight=batch.weight,
    )  # fmt: skip


def _non_finite(loss: Tensor, logps: Tensor, batch: MicroBatch) -> str:
    """Which prompts a loss that is no number came from."""
    broken = ~torch.isfinite(logps.detach()).all(-1)  # (N,)
    guilty = set(batch.prompt[broken].tolist()) or set(range(len(batch.rows)))
    examples = [batch.rows[index].example for index in sorted(guilty)]
    names = [f"{example.place} {shorten(example.prompt, 40)}" for example in examples[:5]]
    more = f" and {len(examples) - 5} more" if len(examples) > 5 else ""
    return f"the loss is {loss.item()}; prompts: {', '.join(names)}{more}"


def _common_metrics(batch: Batch, samples_are_fresh: bool) -> dict[str, Tensor]:
    """name -> (tokens,) per-token values in nats: log-prob and log-ratio by role, and an estimate of the KL.

    `kl/reference` is taken on the tokens of samples, as exp(d) - 1 - d (never negative, unbiased): of
    KL(reference || policy) where the samples are the reference's, of KL(policy || reference) where they are the
    current policy's. Samples drawn under an instruction or a temperature make it an approximation.
    """
    metrics = {}
    for role, name in ROLE_NAMES.items():
        tokens = batch.mask & (batch.role == role)[:, None]
        metrics[f"logps/{name}"] = batch.logps.detach()[tokens]
        if batch.ref_logps is not None:
            log_ratio = (batch.logps.detach() - batch.ref_logps)[tokens]
            metrics[f"log_ratio/{name}"] = log_ratio
            if role == SAMPLE:
                d = -log_ratio if samples_are_fresh else log_ratio
                metrics["kl/reference"] = d.exp() - 1 - d
    return metrics
