"""BCO: Binary Classifier Optimization (Jung et al., ACL 2025).

https://arxiv.org/abs/2404.04656. For each response by itself, with its reward r = beta * h(y), sequence sums

    good: -log sigmoid(r - d)      bad: -log sigmoid(-(r - d))

d, the shift, is the mean of all rewards of the run so far, those of this step included, good and bad, without gradient
(as TRL 1.10 and LLaMA-Factory have it; read in code, not in the paper, which may weigh good and bad alike instead of
by their numbers). The whole optimiser step enters at once, so d does not depend on how a step is cut; it is kept in
the checkpoints. Without d, and on pairs, this is `bco_pair`.

Left out: the density-ratio weights on negatives whose prompts differ from the positives' (a classifier of prompts would
have to be trained first). TRL 1.16 has only `bco_pair`, on pairs and without d.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 3.5 nat a token,
KL is at most 4.2.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from align.objectives import Batch, Losses, Objective
from align.objectives._responses import by_role, role_metrics
from align.schema import option


@dataclass(frozen=True)
class BCO(Objective):
    """Classifies each response as good or bad by its reward, against the mean reward of the run so far."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")

    needs = ("reference", "responses")
    normalize_by = "response"

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        return {"rewards": self.beta * batch.log_ratios().detach()}

    def remember(self, memory: dict[str, float], values: dict[str, Tensor]) -> dict[str, float]:
        rewards = values.get("rewards")
        total, count = (0.0, 0) if rewards is None else (rewards.double().sum().item(), len(rewards))
        return {"sum": memory.get("sum", 0.0) + total, "count": memory.get("count", 0) + count}

    def __call__(self, batch: Batch) -> Losses:
        rewards, memory = self.beta * batch.log_ratios(), self.whole_step(batch).memory  # (N,)
        shift = memory["sum"] / memory["count"]
        losses = -F.logsigmoid(by_role(batch, 1.0, -1.0) * (rewards - shift))
        metrics = role_metrics(batch, reward=rewards)
        return Losses(losses, metrics | {"shift": rewards.new_full((len(rewards),), shift)})
