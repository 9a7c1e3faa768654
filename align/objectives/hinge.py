"""Hinge loss on log-ratios: the `hinge-norm` of RSO (Liu et al., ICLR 2024), after SLiC-HF (Zhao et al., 2023).

https://arxiv.org/abs/2309.06657, for each pair of a positive y_w and a negative y_l of a prompt

    L = max(0, 1 - beta * D),    D = h(y_w) - h(y_l)

with sequence sums, h the log-ratio to the reference, and the paper's gamma called beta. A pair whose margin has
reached 1 / beta nats has no gradient any more.

TRL 1.16 has the same formula and names SLiC-HF (https://arxiv.org/abs/2305.10425) for it. SLiC-HF itself has no
reference: its loss is max(0, delta - log pi(y_w) + log pi(y_l)), with a term - lambda log pi(y) on answers of the
fine-tuning data. Both are left out, as TRL does; the recipe's `retain` section can take the place of the second.
Left out too: the rejection sampling that gives RSO its pairs, which is a matter of data.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.09 nat a token,
KL is at most 0.10.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class Hinge(WeightedPairs):
    """Pushes each pair apart until its margin is reached, then leaves it alone."""

    beta: float = option(0.05, gt=0, doc="Slope, per nat of log-ratio; 1 / beta is the margin to reach, in nats.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = self.log_ratios_of_pairs(batch)
        margin = self.beta * (positive - negative)
        return self.weighted(batch, (1 - margin).relu(), margin)
