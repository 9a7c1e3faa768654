"""rDPO: Provably Robust DPO, for pairs of which a known share is flipped (Chowdhury et al., ICML 2024).

https://arxiv.org/abs/2403.00409, for each pair of a positive y_w and a negative y_l of a prompt

    L = [ -(1 - e) log sigmoid(beta * D) + e log sigmoid(-beta * D) ] / (1 - 2e),    D = h(y_w) - h(y_l)

with sequence sums, h the log-ratio to the reference, and e the share of flipped labels, `label_smoothing`. Over the
flips its mean is the DPO loss of the clean labels; cDPO (`dpo` with `label_smoothing`) is biased instead, and stops
at a finite margin. e = 0 is DPO.

It is unbounded below: pairs that are told apart go on being pushed, with a slope that ends at beta * e / (1 - 2e),
so stop early. TRL 1.16 has the same formula, with e = 0 as its default.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.07 nat a token,
KL is at most 0.08.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs
from align.schema import option


@dataclass(frozen=True)
class Robust(WeightedPairs):
    """DPO that expects a share of flipped pairs and takes their effect out of the loss."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    label_smoothing: float = option(0.1, ge=0, lt=0.5, doc="Share of pairs whose label is taken to be flipped.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = self.log_ratios_of_pairs(batch)
        margin, flipped = self.beta * (positive - negative), self.label_smoothing
        clean = -(1 - flipped) * F.logsigmoid(margin) + flipped * F.logsigmoid(-margin)
        return self.weighted(batch, clean / (1 - 2 * flipped), margin)
