"""Reward calibration: keeps a pair objective inside the band where positives rise and negatives fall.

Wu et al., "Disentangled Preference Optimization", ICML 2026, https://arxiv.org/abs/2604.18239. With d_w and d_l the
loss's pulls on the mean log-probs m_w and m_l of positives and negatives, s_w and s_l the norms of the gradients of m_w
and m_l in some weights, and rho their cosine, a small step of gradient descent raises m_w and lowers m_l just if

    rho * r < d_w / d_l < r / rho,    r = s_l / s_w         (rho > 0)

r is the middle of this band. The pull on positives is multiplied by e^(k/2), that on negatives by e^(-k/2), with

    k = EMA(log r) - EMA(log d_w / d_l),

by letting z' = c z + (1 - c) stop_gradient(z) stand for a log-prob z: the loss keeps its value.

Our reading; the paper's text and the authors' code were known from notes alone:
* The weights are a bias on the last hidden states. The gradient of a log-prob in it is what the backward pass brings
  to its hidden state, over the loss's pull on that log-prob: nothing is computed twice, and it works under ZeRO-3.
  (Theirs: the head or LoRA matrices, by two more backward passes.) Of an objective of your own no `extras` may have a
  gradient, or this quotient is another one.
* m_w and m_l are means over the positives and negatives of the whole optimiser step, each response a mean over those of
  its tokens that are pulled at; d_w and d_l are sums over the step. All are summed over micro-batches and ranks first,
  so no cut of a step changes k, and all ranks have the same.
* A step's statistics count from the next step on; the first step is not calibrated, and the second takes the first
  one's as they are. Steps where d_w or d_l is not above 0 (an objective past its target) tell nothing.
* |k| is at most log 100: neither pull is ever multiplied by more than 10, or less than 0.1.
"""

from __future__ import annotations

import math

from align.objectives import NEGATIVE, POSITIVE

LARGEST = math.log(100)  # |k|


class Calibration:
    """The two running means, and the factors that follow from them."""

    def __init__(self, decay: float):
        self.decay = decay
        self.means: dict[str, float] = {}  # "band": log s_l / s_w; "pull": log d_w / d_l; empty before the first step

    @property
    def k(self) -> float:
        """log of the factor between the pull on positives and that on negatives."""
        if not self.means:
            return 0.0
        return max(-LARGEST, min(LARGEST, self.means["band"] - self.means["pull"]))

    def factors(self) -> dict[int, float]:
        """role -> what the pull on its log-probs is multiplied by."""
        return {POSITIVE: math.exp(self.k / 2), NEGATIVE: math.exp(-self.k / 2)}

    def update(self, pulls: dict[int, float], norms: dict[int, float]) -> None:
        """Takes in a step: the pull on each role (above 0: towards its side) and the norm of its mean gradient."""
        if min(pulls[POSITIVE], pulls[NEGATIVE], norms[POSITIVE], norms[NEGATIVE]) <= 0:
            return
        found = {
            "band": math.log(norms[NEGATIVE] / norms[POSITIVE]),
            "pull": math.log(pulls[POSITIVE] / pulls[NEGATIVE]),
        }
        before = self.means or found
        self.means = {name: self.decay * before[name] + (1 - self.decay) * value for name, value in found.items()}
