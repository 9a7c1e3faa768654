"""AlphaPO: Reward Shape Matters for LLM Alignment (Gupta et al., ICML 2025).

https://arxiv.org/abs/2501.03884, for each pair of a positive y_w and a negative y_l of a prompt

    L = -log sigmoid( beta * (r(y_w) - r(y_l)) - gamma ),    r(y) = (1 - p(y)^-alpha) / alpha

with p the exponential of the mean log-prob a token. alpha -> 0 is SimPO (r is the mean log-prob); alpha = -1 compares
the probabilities themselves. A positive alpha pulls hardest where p is small: its slope in log p is p^-alpha.
Ours: beyond p^-alpha = e^20 the reward goes on as its tangent, else one impossible token overflows. The formula is that
of TRL's CPOTrainer with loss_type alphapo; the paper's equation numbers and its beta and gamma were not read, so our
defaults are SimPO's. A prompt with several positives and negatives gives all their pairs.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.08 nat a token,
KL is at most 0.09.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses, Objective
from align.objectives._pairs import of_pairs, pair_losses
from align.objectives._preferences import shaped_reward
from align.schema import option


@dataclass(frozen=True)
class AlphaPO(Objective):
    """SimPO with a reward of another shape: a power of the mean probability in place of its log."""

    beta: float = option(2.0, gt=0, doc="Inverse temperature of the shaped reward.")
    gamma: float = option(1.0, ge=0, doc="Margin inside the sigmoid that beta times the difference must exceed.")
    alpha: float = option(0.25, ge=-5, le=5, doc="Shape of the reward, the power of 1/p; 0 is its log (SimPO).")

    needs = ("pairs",)
    normalize_by = "pair"

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, self.beta * shaped_reward(batch.means(), self.alpha))
        margin = positive - negative  # (P,)
        return pair_losses(-F.logsigmoid(margin - self.gamma), margin)
