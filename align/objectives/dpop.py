"""DPOP, DPO-Positive (Pal et al., "Smaug: Fixing Failure Modes of Preference Optimisation", 2024).

https://arxiv.org/abs/2402.13228, for each pair of a positive y_w and a negative y_l of a prompt

    L = -log sigmoid( beta * (h(y_w) - h(y_l) - lambda * max(0, -h(y_w))) )

with sequence sums and h the log-ratio to the reference: a positive that has become less likely than it was costs
lambda times as much as a margin earns. lambda = 0 is DPO. Made for pairs that differ in few tokens, where DPO may
lower both. Published (in notes on the paper; no code was found): beta 0.3, lambda 50, with 5 to 500 alike.
A prompt with several positives and negatives gives all their pairs. The logged margin leaves the penalty out.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.02 nat a token,
KL is at most 0.03.
"""

import dataclasses
from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import ReferencePairs, of_pairs, pair_losses
from align.schema import option


@dataclass(frozen=True)
class DPOP(ReferencePairs):
    """DPO with a penalty on positives that have become less likely than under the reference."""

    beta: float = option(0.3, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    lambda_: float = option(50.0, ge=0, doc="Weight of a positive's lost log-prob, beside the margin's 1.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, batch.log_ratios())
        penalty = F.relu(-positive)  # (P,) nats
        margin = positive - negative
        result = pair_losses(-F.logsigmoid(self.beta * (margin - self.lambda_ * penalty)), self.beta * margin)
        return dataclasses.replace(result, metrics=result.metrics | {"penalty": penalty.detach()})
