"""APO-down: Anchored Preference Optimization for positives worse than the model (D'Oosterlinck et al., TACL 2025).

https://arxiv.org/abs/2408.06266, Eq. 8 as TRL counts, for each pair of a positive y_w and a negative y_l of a prompt

    L = sigmoid(r_w) + 1 - sigmoid(r_w - r_l),    r = beta * h(y)

with sequence sums and h the log-ratio to the reference. The positive is moved down, by design, and the negative
further down. At the reference itself the two pulls on the positive cancel; as the margin grows the second fades.

The constant 1 is TRL's: it keeps the loss above 0 and has no gradient. Otherwise TRL 1.16 has the same formula.
Use it where even the positives are worse than what the model writes; where they are better, `apo_zero`.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 1.4 nat a token,
KL is at most 1.3.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class APODown(WeightedPairs):
    """Lowers positives too, and negatives further: for pairs that the model itself outdoes."""

    beta: float = option(0.1, gt=0, doc="Reward per nat of log-ratio.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = (self.beta * log_ratio for log_ratio in self.log_ratios_of_pairs(batch))
        margin = positive - negative
        return self.weighted(batch, positive.sigmoid() + (-margin).sigmoid(), margin)
