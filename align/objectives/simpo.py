"""SimPO: Simple Preference Optimization with a Reference-Free Reward (Meng, Xia and Chen, NeurIPS 2024).

https://arxiv.org/abs/2405.14734, Eq. 6, for each pair of a positive y_w and a negative y_l of a prompt

    L = -(1 - e) log sigmoid(z) - e log sigmoid(-z),    z = beta * (m(y_w) - m(y_l)) - gamma

with m the mean log-prob a token. e = 0 is the paper; e, the label smoothing, is TRL's addition (its CPOTrainer with
loss_type simpo and cpo_alpha 0, where simpo_gamma is this gamma). A prompt with several positives and negatives gives
all their pairs. Published: beta 2 to 10, gamma / beta 0.3 to 0.8. Nothing holds the policy but a small learning rate
(3e-7 to 1e-6 on full weights; at 1e-6 GSM8K fell). The logged margin leaves gamma out, so accuracy compares the means.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.10 nat a token,
KL is at most 0.11.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses, Objective
from align.objectives._pairs import of_pairs, pair_losses, smoothed_logistic
from align.schema import option


@dataclass(frozen=True)
class SimPO(Objective):
    """Prefers the positive of each pair by its mean log-prob a token, with a margin; no reference."""

    beta: float = option(2.0, gt=0, doc="Inverse temperature of the mean log-prob, per nat.")
    gamma: float = option(1.0, ge=0, doc="Margin inside the sigmoid that beta times the difference must exceed.")
    label_smoothing: float = option(0.0, ge=0, lt=0.5, doc="Share of pairs whose label is taken to be flipped.")

    needs = ("pairs",)
    normalize_by = "pair"

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, self.beta * batch.means())
        margin = positive - negative  # (P,)
        return pair_losses(smoothed_logistic(margin - self.gamma, self.label_smoothing), margin)
