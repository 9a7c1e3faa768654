"""DPO: Direct Preference Optimization (Rafailov et al., NeurIPS 2023), with cDPO and f-DPO.

https://arxiv.org/abs/2305.18290, Eq. 7, for each pair of a positive y_w and a negative y_l of a prompt

    L = -(1 - e) log sigmoid(beta * D) - e log sigmoid(-beta * D),    D = h(y_w) - h(y_l)

with sequence sums, h the log-ratio to the reference, and e the label smoothing of cDPO (Mitchell, 2023);
e = 0 is DPO. A prompt with several positives and negatives gives all their pairs.
TRL 1.16 ignores `label_smoothing` for its `sigmoid` loss; here it is the paper's.

f-DPO (Wang et al., ICLR 2024, https://arxiv.org/abs/2309.16240) holds the policy by another f-divergence than the
reverse KL: with u = exp(h) the score of a response is f'(u) instead of h = log u, D the difference of scores.

    forward_kl         1 - 1/u                     pulls hard on positives that the policy makes unlikely
    js_divergence      log(2u / (1 + u))           at most log 2: likely positives are left alone
    alpha_divergence   (u^(a-1) - 1) / (a-1)       a = 1 is the reverse KL, a = 0 the forward KL

`alpha_divergence_coef` is a as in TRL 1.16; the paper's alpha is 1 - a (the two agree at the default, 0.5). Constants
are chosen such that u = 1 scores 0; they cancel in D. Powers of u end at exp(80), beyond which they have no
gradient; TRL bounds them so for the alpha-divergence, not for the forward KL, which overflows there.

`length_normalize` divides each score by the number of tokens of its response: TRL's `sigmoid_norm`, from no paper
of its own that we know of.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.07 nat a token,
KL is at most 0.07.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives import Batch, Losses
from align.objectives._pairs import WeightedPairs, per_token, smoothed_logistic
from align.schema import option

LARGEST_EXPONENT = 80.0  # exp of it, times a slope and a number of pairs, is still finite in float32


@dataclass(frozen=True)
class DPO(WeightedPairs):
    """Prefers the positive of each pair to its negative, held by the reference."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    label_smoothing: float = option(0.0, ge=0, lt=0.5, doc="Share of pairs whose label is taken to be flipped (cDPO).")
    f_divergence: str = option(
        "reverse_kl",
        choices=("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"),
        doc="Divergence that holds the policy by the reference (f-DPO); reverse_kl is DPO.",
    )
    alpha_divergence_coef: float = option(
        0.5, ge=0, le=1, doc="What alpha_divergence is: 1 the reverse KL, 0 the forward KL; 1 minus the paper's alpha."
    )
    length_normalize: bool = option(False, doc="Divide the score of a response by its number of tokens.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = map(self.score, self.log_ratios_of_pairs(batch))
        if self.length_normalize:
            positive, negative = per_token(batch, positive, negative)
        margin = self.beta * (positive - negative)
        return self.weighted(batch, smoothed_logistic(margin, self.label_smoothing), margin)

    def score(self, log_ratio: Tensor) -> Tensor:
        """(P,) f'(u) of log u (P,), for the divergence that is set."""
        if self.f_divergence == "js_divergence":
            return math.log(2) + F.logsigmoid(log_ratio)
        powers = {"reverse_kl": 0.0, "forward_kl": -1.0, "alpha_divergence": self.alpha_divergence_coef - 1}
        power = powers[self.f_divergence]
        if power == 0:
            return log_ratio
        return torch.expm1((power * log_ratio).clamp(max=LARGEST_EXPONENT)) / power
