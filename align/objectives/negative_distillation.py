"""Negative distillation: Diversifying Neural Dialogue Generation via Negative Distillation (Li et al., NAACL 2022).

https://arxiv.org/abs/2205.02795. A teacher N was trained on negatives alone (`reference.teacher`: the negative head of
a run of `likra`, say) and is frozen. With p the policy's and N's distribution over the vocabulary at each token of a
response, and means over its tokens,

    S    = mean_t sum_v N_t(v) * -log(1 - p_t(v))                                     soft unlikelihood
    good: (1 - a) * mean_t -log p_t + a * S              bad: a * S, with `on_negatives`
    a    = alpha * 4 e^-z / (1 + e^-z)^2,   z = steepness * (progress / peak - 1)

so that imitation comes first, the push away from the teacher rises to alpha, and fades again: a bell over the run's
optimiser steps, `progress` the share of them that is done. The paper's k = 6 / g is steepness 6, its g is `peak`, its
lambda 4 is alpha 1. In a logit z_j the gradient of S is p_j (N_j / (1 - p_j) - sum_v N_v p_v / (1 - p_v)): it has the
factor p_j, so the push fades as what the teacher says becomes unlikely. Tokens that the teacher holds likely and are
right are pushed down as well: the nearer negatives are to positives, the smaller alpha must be.

The paper reads the teacher at the tokens of good responses only (`on_negatives: false`); at those of the bad ones it is
unlikelihood on all that the teacher would say there, not on one token. With negatives alone there is no imitation.

Left out: the repulsion of hidden states and of attention scores, layer by layer (most of the paper's gain; they need
both models' inner states), and how the paper chooses its negatives (responses that answer many queries). Paper text not
read again for this file; the equations are from our notes of it. log p is not taken above -1e-6 in 1 - p.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 2.9 nat a token,
KL is at most 2.3. The teacher there is the policy as it began: whatever it would say at all is pushed down (measured:
2.0 and 1.6, and negatives lose 2.1). With one that learned from negatives the push is aimed; that is not measured.
"""

import math
from dataclasses import dataclass

from align.objectives import NEGATIVE, POSITIVE, Batch, Losses, Objective
from align.objectives._responses import by_role, role_losses
from align.schema import option


@dataclass(frozen=True)
class NegativeDistillation(Objective):
    """Imitates positives and lowers all that a teacher trained on negatives would say; mid-run the most."""

    alpha: float = option(1.0, ge=0, le=1, doc="Largest share of the push away from the teacher, at the peak.")
    peak: float = option(0.5, gt=0, le=1, doc="Share of the run's steps after which the push is largest.")
    steepness: float = option(6.0, ge=0, le=100, doc="How fast it rises and fades; 0: the same at every step.")
    on_negatives: bool = option(True, doc="Push at the tokens of negatives, too; false: of positives alone.")

    needs = ("responses", "teacher")
    normalize_by = "response"

    @property
    def extras(self) -> tuple[str, ...]:
        return ("soft_unlikelihood",)

    def roles(self) -> set[int]:
        return {POSITIVE, NEGATIVE} if self.on_negatives else {POSITIVE}

    def share(self, progress: float) -> float:
        """a, when this share of the run's optimiser steps is done."""
        fading = math.exp(-abs(self.steepness * (progress / self.peak - 1)))  # the bell is symmetric
        return self.alpha * 4 * fading / (1 + fading) ** 2

    def __call__(self, batch: Batch) -> Losses:
        share = self.share(batch.progress)
        soft = batch.over_tokens(batch.extras["soft_unlikelihood"]) / batch.lengths()  # (N,)
        losses = by_role(batch, -(1 - share) * batch.means() + share * soft, share * soft * self.on_negatives)
        return role_losses(batch, losses, soft_unlikelihood=soft)
