"""APO-zero: Anchored Preference Optimization for positives better than the model (D'Oosterlinck et al., TACL 2025).

https://arxiv.org/abs/2408.06266, Eq. 7 as TRL counts, for each pair of a positive y_w and a negative y_l of a prompt

    L = 1 - sigmoid(r_w) + sigmoid(r_l),    r = beta * h(y)

with sequence sums and h the log-ratio to the reference. The positive is moved up and the negative down, each against
the reference and not against the other, and each slope fades as its response leaves the reference on either side.

The constant 1 is TRL's: it keeps the loss above 0 and has no gradient. Otherwise TRL 1.16 has the same formula.
Use it where the positives are better than what the model writes; where they are worse, `apo_down`.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.08 nat a token,
KL is at most 0.08.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class APOZero(WeightedPairs):
    """Raises positives and lowers negatives, each against the reference, by slopes that fade."""

    beta: float = option(0.1, gt=0, doc="Reward per nat of log-ratio.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = (self.beta * log_ratio for log_ratio in self.log_ratios_of_pairs(batch))
        return self.weighted(batch, (-positive).sigmoid() + negative.sigmoid(), positive - negative)
