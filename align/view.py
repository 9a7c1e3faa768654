"""From a micro-batch to what an objective sees of it: every log-prob it asks for, and nothing else."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.data.tokenize import ROLE_NAMES
from align.objectives import SAMPLE, Batch, Objective, WholeStep
from align.pulls import Pulls
from align.reference import References
from align.reference.ema import RunningMeans
from align.reference.teacher import Teacher
from align.scoring.extras import extra
from align.scoring.logprobs import response_logps, response_scores


class Scorer:
    """Scores micro-batches for one objective. Every rank must call its methods equally often (ZeRO-3)."""

    def __init__(
        self,
        objective: Objective,
        references: References | None,
        means: RunningMeans | None,
        seed: int,
        teacher: Teacher | None = None,
        pulls: Pulls | None = None,
    ):
        self.objective, self.references, self.means, self.seed = objective, references, means, seed
        self.teacher, self.pulls = teacher, pulls

    @torch.no_grad()
    def others(self, model: nn.Module, batch: MicroBatch) -> dict[str, Tensor]:
        """(N, T) log-probs under everyone but the policy: fields of `Batch`, the same for a whole step."""
        part = batch.for_objective(self.objective.roles())
        found = {}
        if "reference" in self.objective.needs:
            found["ref_logps"] = self.references.logps(model, part)
        if "behavior" in self.objective.needs:
            given = part.behavior_logps
            asked = self.references is not None and self.references.behavior is not None
            found["behavior_logps"] = self.references.behavior_logps(model, part) if asked else given
        if self.means is not None:
            found["ema_logps"] = self.means.logps(model, part)
        return found

    def forwards(self) -> int:
        """Micro-batches that went through a reference model, since the start."""
        return 0 if self.references is None else self.references.forwards

    def policy(self, model: nn.Module, batch: MicroBatch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """(N, T) log-probs of all responses under the policy, and the extras that the objective asks for."""
        names = self.objective.extras
        k = self.objective.num_alternatives if "alternatives" in names else 0
        teacher = self.teacher.distributions(batch) if self.teacher else None
        wanted = {name: extra(name, batch, k=k, seed=self.seed, step=step, teacher=teacher) for name in names}
        return response_scores(model, batch, wanted, None if self.pulls is None else self.pulls.follow)

    def view(
        self,
        batch: MicroBatch,
        logps: Tensor,
        extras: dict[str, Tensor],
        others: dict[str, Tensor],
        step: WholeStep | None = None,
        progress: float = 0.0,
    ) -> Batch | None:
        """What the objective sees; None if nothing of the micro-batch is for it."""
        chosen = batch.is_for(self.objective.roles())  # (N,)
        if not chosen.any():
            return None
        part = batch.for_objective(self.objective.roles())
        width = part.mask.shape[1]
        own = {name: values[chosen, :width] for name, values in extras.items()}
        seen = bare_view(part, logps[chosen, :width])
        view = dataclasses.replace(seen, extras=own, step=step, progress=progress, **others)
        return view if self.pulls is None else self.pulls.scaled(view)

    def mismatched_log_ratios(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        """(N,) log-ratios of responses to the reference, behind prompts that are not theirs; none of a stand-in."""
        with torch.no_grad():
            ratios = response_logps(model, batch) - self.references.logps(model, batch)
        return (ratios * batch.mask).sum(-1) if batch.rows else ratios.new_zeros(0)


def bare_view(part: MicroBatch, logps: Tensor) -> Batch:
    """A view without anybody else's log-probs; `part` is `MicroBatch.for_objective`'s."""
    return Batch(
        logps=logps, mask=part.mask, role=part.role, prompt=part.prompt, pairs=part.pairs,
        reward=part.reward, weight=part.weight, step_label=part.step_label, token_weight=part.token_weight,
    )  # fmt: skip


def common_metrics(batch: Batch, samples_are_fresh: bool) -> dict[str, Tensor]:
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
