"""EXO: Efficient Exact Optimization, the loss for pairs (Ji et al., ICML 2024).

https://arxiv.org/abs/2402.00856, Eq. 16 as TRL counts, for each pair of a positive y_w and a negative y_l of a prompt

    L = q_w (log q_w - log(1 - e)) + q_l (log q_l - log e),    q_w = sigmoid(beta * D) = 1 - q_l,
                                                               D = h(y_w) - h(y_l)

with sequence sums, h the log-ratio to the reference: the reverse KL from the policy's distribution over the two
responses to the labels', (1 - e, e). DPO with label smoothing e is the forward KL between the same two.

Least at beta * D = log((1 - e) / e), 6.9 for the default. The slope carries the factor q_w * q_l, so a pair that the
policy gets very wrong is let go, unlike with DPO. TRL 1.16 has the same formula and wants e to be set; 1e-3 is,
by its documentation, what the paper recommends. Left out: more than two responses at once.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.08 nat a token,
KL is at most 0.09.
"""

import math
from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class EXO(WeightedPairs):
    """Matches the policy's choice between the two of each pair to the label by the reverse KL."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    label_smoothing: float = option(1e-3, gt=0, lt=0.5, doc="Probability that the label gives to the negative.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = self.log_ratios_of_pairs(batch)
        margin = self.beta * (positive - negative)
        terms = (
            z.sigmoid() * (F.logsigmoid(z) - math.log(label))
            for z, label in ((margin, 1 - self.label_smoothing), (-margin, self.label_smoothing))
        )
        return self.weighted(batch, sum(terms), margin)
