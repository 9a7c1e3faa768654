"""NPO: Negative Preference Optimization (Zhang et al., COLM 2024).

https://arxiv.org/abs/2404.05868, as in the authors' code, for each negative y of a prompt

    L = -(2 / beta) * log sigmoid(-beta * h(y))

with sequence sums, h the log-ratio to the reference: DPO without its positive, times 2 / beta. Against gradient ascent
each negative's pull has the weight 2 p^beta / (p^beta + p_ref^beta), which fades as the negative becomes unlikely;
beta -> 0 is gradient ascent. At the start the loss is 2 ln 2 / beta.

Alone it still drags good answers down with the bad ones: published runs hold them by a likelihood term of weight 1,
here `retain`.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 2.8 nat a token,
KL is at most 3.3.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import NEGATIVE, Batch, Losses, Objective
from align.schema import option


@dataclass(frozen=True)
class NPO(Objective):
    """Pushes each negative down, ever less the further it is below the reference; needs no positives."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat; near 0 it is gradient ascent.")

    needs = ("reference", "negatives")
    normalize_by = "negative"

    def __call__(self, batch: Batch) -> Losses:
        rewards = self.beta * batch.log_ratios()[batch.role == NEGATIVE]  # (negatives,)
        push = 2 * rewards.detach().sigmoid()  # of each negative, gradient ascent's being 1
        return Losses(-2 / self.beta * F.logsigmoid(-rewards), {"negative_weight": push})
