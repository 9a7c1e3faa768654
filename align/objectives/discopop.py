"""DiscoPOP: Discovered Preference Optimization, the log-ratio modulated loss (Lu et al., NeurIPS 2024).

https://arxiv.org/abs/2406.08414, Eq. 5 as TRL counts, for each pair of a positive y_w and a negative y_l of a prompt

    L = -(1 - m) log sigmoid(z) + m exp(-z),    z = beta * (h(y_w) - h(y_l)),    m = sigmoid(z / tau)

with sequence sums and h the log-ratio to the reference. A language model found it by search: DPO's logistic loss
below a margin of 0, an exponential one above. It is not convex: for tau 0.05 the loss rises from z = -2.3714 tau to
z = 1.4401 tau. Training starts inside, at z = 0, so at first a pair is pulled the WRONG way, to the local minimum at
D = -2.37 tau / beta nats, unless other pairs carry it over. From tau 0.11 on there is no such valley.

TRL 1.16 has the same formula. Its documentation names beta 0.05 and tau 0.05 as the paper's, our defaults. tau ends
at 1 here: beyond it m does not fall as fast as exp(-z) grows, and a pair that is told apart wrongly would explode.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.07 nat a token,
KL is at most 0.05.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class DiscoPOP(WeightedPairs):
    """Blends DPO's logistic loss with an exponential one, by the sign of the margin."""

    beta: float = option(0.05, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    tau: float = option(0.05, ge=1e-3, le=1, doc="Width of the passage from one loss to the other, in units of margin.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = self.log_ratios_of_pairs(batch)
        margin = self.beta * (positive - negative)
        logistic = -F.logsigmoid(margin) * (-margin / self.tau).sigmoid()
        exponential = (F.logsigmoid(margin / self.tau) - margin).exp()  # apart, exp(-margin) could overflow
        return self.weighted(batch, logistic + exponential, margin)
