"""BCO on pairs, without its reward shift: the two cross-entropies (after Jung et al., ACL 2025).

https://arxiv.org/abs/2404.04656; here, as TRL 1.16's `bco_pair`, for each pair of a positive y_w and a
negative y_l of a prompt

    L = -log sigmoid(r_w) - log sigmoid(-r_l),    r = beta * h(y)

with sequence sums and h the log-ratio to the reference: a classifier of good against bad whose logit is the reward.
It bounds the DPO loss from above: sigmoid(r_w) sigmoid(-r_l) < sigmoid(r_w - r_l).

The paper subtracts a shift delta, the running mean of all rewards, from r (-log sigmoid(r_w - delta) and
-log sigmoid(-(r_l - delta))), and may weigh the negatives by a density ratio. Both are left out here as TRL leaves
them out, so this is not the paper's method in full. Without the shift every positive rises until its own reward is
high, however low the negative's already is.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.08 nat a token,
KL is at most 0.08.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class BCOPair(WeightedPairs):
    """Classifies the positive of each pair as good and the negative as bad, each by itself."""

    beta: float = option(0.01, gt=0, doc="Reward per nat of log-ratio.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = (self.beta * log_ratio for log_ratio in self.log_ratios_of_pairs(batch))
        return self.weighted(batch, -F.logsigmoid(positive) - F.logsigmoid(-negative), positive - negative)
