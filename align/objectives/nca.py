"""NCA: Noise Contrastive Alignment, the loss for pairs (Chen et al., NeurIPS 2024).

https://arxiv.org/abs/2402.05369, for each pair of a positive y_w and a negative y_l of a prompt

    L = -log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l),    r = beta * h(y)

with sequence sums, h the log-ratio to the reference, and the paper's alpha called beta. Rewards are absolute, not
differences as in DPO: the positive is drawn to r_w = log 2, so its likelihood is kept from falling; the negative is
pushed down without end, ever more weakly.

TRL 1.16 has the same formula (`nca_pair`). Left out: several responses with explicit rewards, of which this is the
case of two and a hard preference; InfoNCA (`infonca`), whose case of two is DPO.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.07 nat a token,
KL is at most 0.07.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class NCA(WeightedPairs):
    """Classifies the two of each pair against the reference and keeps the positive from falling."""

    beta: float = option(0.01, gt=0, doc="The paper's alpha: reward per nat of log-ratio.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = (self.beta * log_ratio for log_ratio in self.log_ratios_of_pairs(batch))
        pushed_down = F.logsigmoid(-positive) + F.logsigmoid(-negative)
        return self.weighted(batch, -F.logsigmoid(positive) - pushed_down / 2, positive - negative)
