"""Cal-DPO: Calibrated Direct Preference Optimization (Xiao et al., NeurIPS 2024).

https://arxiv.org/abs/2412.14516, for each pair of a positive y_w and a negative y_l of a prompt

    L = -log sigmoid(h(y_w) - h(y_l)) + c * [ (h(y_w) - 1/(2 beta))^2 + (h(y_l) + 1/(2 beta))^2 ]

with sequence sums, h the log-ratio to the reference, and c = 0.5: the log-ratios shall not only differ but become
half an inverse beta, up and down. This is the authors' released code, which has no beta inside the sigmoid.
Published: beta 0.001 (their script), targets of 500 nats either way. A positive of -60 nats can gain 60 at most, so for
short responses choose a beta whose target, 1 / (2 beta) nats, can be reached. A prompt with several positives and
negatives gives all their pairs.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.09 nat a token,
KL is at most 0.09.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import ReferencePairs, of_pairs, pair_losses
from align.schema import option


@dataclass(frozen=True)
class CalDPO(ReferencePairs):
    """DPO with squared distances that give the log-ratios a size, so that the positive's must rise."""

    beta: float = option(0.001, gt=0, doc="Half its inverse, in nats, is where the log-ratios shall be.")
    calibration_weight: float = option(0.5, ge=0, doc="Weight of the two squared distances, per squared nat.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, batch.log_ratios())
        target, margin = 1 / (2 * self.beta), positive - negative
        distance = (positive - target) ** 2 + (negative + target) ** 2
        return pair_losses(-F.logsigmoid(margin) + self.calibration_weight * distance, margin)
