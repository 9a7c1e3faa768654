"""REDI: Reinforcement Distillation from Teacher Data for LLM Reasoning (Xu et al., 2025).

https://arxiv.org/abs/2505.24850, for each pair of a positive y_w and a negative y_l of a prompt

    L = -m(y_w) + alpha * m(y_l)

with m the mean log-prob a token; no reference. alpha = 1 is the limit of SimPO for beta -> 0. UNBOUNDED: nothing ends
the push on the negative but alpha < 1 and a small learning rate (published: alpha 0.8, 1e-6, after 3 to 5 epochs of
imitating the positives; alpha = 1 at that rate collapsed, alpha <= 0.5 was too weak).

`gamma` > 0 fades the push: the gradient of the negative's term is exp(gamma * m(y_l)) times as large. The released
code can multiply the term by that factor (off in its recipe), but lets the gradient through it, which then has the sign
of 1 + gamma * m(y_l) and RAISES negatives with m(y_l) < -1/gamma. The factor belongs on the gradient alone; the loss
of which that is the derivative is alpha * (exp(gamma * m(y_l)) - 1) / gamma, bounded below, and it is what we return.
A prompt with several positives and negatives gives all their pairs.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.03 nat a token,
KL is at most 0.06.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses, Objective
from align.objectives._pairs import of_pairs, pair_losses
from align.objectives._preferences import shaped_reward
from align.schema import option


@dataclass(frozen=True)
class REDI(Objective):
    """Imitates the positive and unlearns the negative, by mean log-probs; no reference, no bound."""

    alpha: float = option(0.8, ge=0, le=1, doc="Weight of the negative beside the positive's 1.")
    gamma: float = option(0.0, ge=0, le=5, doc="Fading of the push on unlikely negatives, per nat a token; 0 is off.")

    needs = ("pairs",)
    normalize_by = "pair"

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, batch.means())
        push = shaped_reward(negative, -self.gamma)  # (P,) (exp(gamma * m) - 1) / gamma; m itself for gamma 0
        return pair_losses(self.alpha * push - positive, positive - negative)
