"""Dr. DPO: Distributionally Robustifying Direct Preference Optimization (Wu et al., ICLR 2025).

https://arxiv.org/abs/2407.07880. Over all P pairs of an optimiser step, with l_i the DPO loss of pair i,

    L = -b * log( 1/P * sum_i exp(-l_i / b) ),    dL = sum_i w_i dl_i,    w = softmax(-l / b)

(the authors' code): pairs with a high loss, whose labels may be flipped, weigh less. b = beta_prime; b -> infinity is
the mean, DPO. The code takes the softmax in a micro-batch; here it is over the whole step, whatever its cut.

Each of the P losses has the value L and the gradient P * w_i * dl_i, so their mean is exact in both. Example weights
of pairs come afterwards: they scale what a pair pulls (P * w_i * dl_i) and its share in the logged mean of L, but have
no say in the softmax. A prompt with several positives and negatives gives all their pairs.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.09 nat a token,
KL is at most 0.09.
"""

import dataclasses
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from align.objectives import Batch, Losses
from align.objectives._pairs import ReferencePairs, of_pairs, pair_losses
from align.schema import option


@dataclass(frozen=True)
class DrDPO(ReferencePairs):
    """DPO that trusts pairs less, the higher their loss is among all pairs of the step."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    beta_prime: float = option(1.0, gt=0, doc="Difference of two losses at which one pair weighs e times the other.")

    has_stop_gradient = True  # the value is that of the whole step, the gradient this pair's part of it

    def margins(self, batch: Batch) -> Tensor:
        positive, negative = of_pairs(batch, self.beta * batch.log_ratios())
        return positive - negative

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        return {"losses": -F.logsigmoid(self.margins(batch).detach())}

    def __call__(self, batch: Batch) -> Losses:
        margin, step = self.margins(batch), self.whole_step(batch)
        losses = -F.logsigmoid(margin)  # (P,)
        everyone, first = step.values["losses"], step.first["losses"]  # (all pairs of the step,)
        scores = (everyone.min() - everyone) / self.beta_prime
        # log of a mean of exponentials near 1 (large beta_prime): through their differences from 1, to lose no digits.
        value = everyone.min() - self.beta_prime * scores.expm1().mean().log1p()
        weights = len(scores) * scores.softmax(0)[first : first + len(losses)]
        result = pair_losses(value + weights * (losses - losses.detach()), margin)
        return dataclasses.replace(result, metrics=result.metrics | {"pair_weight": weights})
