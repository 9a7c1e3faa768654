"""IPO: Identity Preference Optimization (Azar et al., AISTATS 2024).

https://arxiv.org/abs/2310.12036, Eq. 17, for each pair of a positive y_w and a negative y_l of a prompt

    L = (D - 1 / (2 beta))^2,    D = h(y_w) - h(y_l)

with sequence sums, h the log-ratio to the reference, and the paper's tau called beta. The margin is drawn to
1 / (2 beta) nats from either side, so pairs that are already told apart are not pushed further, as DPO does.

TRL 1.16 takes the mean of the log-ratio over the tokens of each response, not the sum, and says in a comment that the
authors confirmed it for the paper's results; the paper's text does not have it. `length_normalize` does so.
Left out: preferences sampled from more than one label of a pair; each pair counts as certain.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.04 nat a token,
KL is at most 0.04.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs, per_token
from align.schema import option


@dataclass(frozen=True)
class IPO(WeightedPairs):
    """Draws the margin of each pair to a fixed number of nats and holds it there."""

    beta: float = option(0.1, gt=0, doc="The paper's tau: 1 / (2 beta) is the margin to reach, in nats.")
    length_normalize: bool = option(False, doc="Mean log-ratio a token instead of the sum, as TRL has it.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = self.log_ratios_of_pairs(batch)
        if self.length_normalize:
            positive, negative = per_token(batch, positive, negative)
        margin = positive - negative
        return self.weighted(batch, (margin - 1 / (2 * self.beta)) ** 2, margin)
