"""SPPO: Self-Play Preference Optimization, with hard labels (Wu et al., 2024).

https://arxiv.org/abs/2405.00675, Eq. 4.7 as TRL counts, with the preference probability 1 for the positive y_w of a
pair and 0 for its negative y_l

    L = (h(y_w) - 1 / (2 beta))^2 + (h(y_l) + 1 / (2 beta))^2

with sequence sums and h the log-ratio to the reference, which in the paper is the policy of the round before;
1 / beta is the paper's eta. Unlike IPO, which squares the difference, each response has a target of its own.

The paper estimates soft probabilities by a preference model from several samples of the policy's own; with them the
targets are (P - 1/2) / beta. The hard version is TRL 1.16's `sppo_hard`, and is what stands here. Its rounds (train,
sample, train with the result as the reference) are left out: run the recipe again on the model that came out.
The authors' released code takes half of this sum and runs with beta 0.001; TRL takes the sum and 0.1.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.09 nat a token,
KL is at most 0.09.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class SPPO(WeightedPairs):
    """Draws the log-ratio of each positive up and of each negative down to a fixed number of nats."""

    beta: float = option(0.001, gt=0, doc="1 / eta: the two log-ratios to reach are 1 / (2 beta) nats up and down.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = self.log_ratios_of_pairs(batch)
        target = 1 / (2 * self.beta)
        return self.weighted(batch, (positive - target) ** 2 + (negative + target) ** 2, positive - negative)
