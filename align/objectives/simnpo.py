"""SimNPO: Simplicity Prevails: Rethinking Negative Preference Optimization for LLM Unlearning (Fan et al., 2024).

https://arxiv.org/abs/2410.07163, for each negative y of a prompt, with m the mean log-prob a token

    L = -(2 / beta) * log sigmoid(-beta * (m(y) + gamma))

NPO without a reference: long negatives are not pushed more than short ones. gamma, the margin in nats a token: where
m = -gamma the push is that of gradient ascent on m, below it fades. Published: beta 4.5 and 2.5, gamma 0, with a
likelihood term on what is to be retained that weighs seven to eight times as much as this (here: `retain`). Their
code for one of the benchmarks applies the formula to raw outputs, which looks like an error; it is not reproduced.

Nothing is pushed where m is far below -1 / beta: at -4 nats a token and beta 4.5 `negative_weight` is 3e-7.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 1.9 nat a token,
KL is at most 2.2.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import NEGATIVE, Batch, Losses, Objective
from align.schema import option


@dataclass(frozen=True)
class SimNPO(Objective):
    """Pushes each negative down by its mean log-prob a token, without a reference; needs no positives."""

    beta: float = option(4.5, gt=0, doc="Inverse temperature of the mean log-prob, per nat a token.")
    gamma: float = option(0.0, ge=0, doc="Margin, nats a token.")

    needs = ("negatives",)
    normalize_by = "negative"

    def __call__(self, batch: Batch) -> Losses:
        z = -self.beta * (batch.means()[batch.role == NEGATIVE] + self.gamma)  # (negatives,)
        return Losses(-2 / self.beta * F.logsigmoid(z), {"negative_weight": 2 * (-z).detach().sigmoid()})
