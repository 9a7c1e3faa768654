"""BDPO, Bounded-DPO (Cho et al., "Rethinking DPO: The Role of Rejected Responses", Findings of EMNLP 2025).

https://arxiv.org/abs/2506.12725, for each pair of a positive y_w and a negative y_l of a prompt

    L = -log sigmoid( beta * (h(y_w) - log(lambda * pi(y_l|x) + (1 - lambda) * pi_ref(y_l|x)) + log pi_ref(y_l|x)) )

with sequence sums and h the log-ratio to the reference. The negative's term, log(lambda * e^h(y_l) + 1 - lambda),
cannot fall below log(1 - lambda): once the negative is unlikely, only a likelier positive helps. lambda = 1 is DPO.
As the sums of long answers fall by many nats at once, the push on the negative ends early, after a few nats.
Published: lambda 0.5 (the first author's own text; beta was not verified). The logged margin is what is in the sigmoid.
A prompt with several positives and negatives gives all their pairs.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.02 nat a token,
KL is at most 0.04.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import ReferencePairs, of_pairs, pair_losses
from align.schema import option


@dataclass(frozen=True)
class BDPO(ReferencePairs):
    """DPO whose gain from an unlikely negative is bounded: the negative is mixed with the reference."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    lambda_: float = option(0.5, gt=0, le=1, doc="Share of the policy in the negative's mixture; 1 is DPO.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, batch.log_ratios())
        floor = negative.new_tensor(math.log1p(-self.lambda_) if self.lambda_ < 1 else -math.inf)
        margin = self.beta * (positive - torch.logaddexp(math.log(self.lambda_) + negative, floor))  # (P,)
        return pair_losses(-F.logsigmoid(margin), margin)
