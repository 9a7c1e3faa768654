"""MMPO: Margin Matching Preference Optimization (Kim et al., Findings of EMNLP 2024).

https://arxiv.org/abs/2410.03145, for each pair of a positive y_w and a negative y_l of a prompt

    L = -p log sigmoid(z) - (1 - p) log sigmoid(-z),    p = sigmoid(gamma * (r(y_w) - r(y_l)))

with z = beta * (h(y_w) - h(y_l)), sequence sums, h the log-ratio to the reference, r the rewards in the rows: a small
gap in reward asks for a small margin. The loss is least at z = gamma * (r(y_w) - r(y_l)); a gap below 0 turns the pair.
gamma -> infinity is DPO. Published (the authors' code): gamma 2.2 for scores of theirs (0.3 and 1.1 elsewhere), beta
0.01; gamma is per unit of your rewards. A prompt with several positives and negatives gives all their pairs.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.09 nat a token,
KL is at most 0.09.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses, Objective
from align.objectives._pairs import of_pairs, pair_losses
from align.schema import option


@dataclass(frozen=True)
class MMPO(Objective):
    """DPO with soft labels: how sure a pair's label is follows from the gap between its rewards."""

    beta: float = option(0.01, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    gamma: float = option(2.2, gt=0, doc="Log-odds of the label for a reward gap of 1.")

    needs = ("reference", "pairs", "rewards")
    normalize_by = "pair"

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, self.beta * batch.log_ratios())
        better, worse = of_pairs(batch, self.gamma * batch.rewards())
        margin, label = positive - negative, (better - worse).sigmoid()  # (P,)
        return pair_losses(-label * F.logsigmoid(margin) - (1 - label) * F.logsigmoid(-margin), margin)
