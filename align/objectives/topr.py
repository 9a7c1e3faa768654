"""TOPR: Tapered Off-Policy REINFORCE (Le Roux et al., 2025).

https://arxiv.org/abs/2503.14286. For each logged roll-out y of reward R, good R >= 0, bad R < 0

    good: L = -R * log pi(y) / |y|      bad: L = -R * sg( min(1, pi(y) / mu(y)) ) * log pi(y) / |y|

with sequence sums, mu the policy that wrote it, sg without gradient: bad roll-outs count less as they become unlikely,
which bounds the push; untapered ones collapse. No baseline, no KL. R is `reward` in the rows, else 1 and -1 by role.
The paper found 10 to 20 % good roll-outs best. Read in notes, not in the paper's own text; `length_normalize: false`
leaves |y| out.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 0.30 nat a token,
KL is at most 0.20.
"""

from dataclasses import dataclass

import torch

from align.objectives import Batch, Losses, Objective, lift
from align.objectives._responses import role_losses
from align.schema import option


@dataclass(frozen=True)
class TOPR(Objective):
    """REINFORCE on logged roll-outs that tapers the push on bad ones off as they become unlikely; no reference."""

    length_normalize: bool = option(True, doc="Divide by the number of tokens of the roll-out.")

    needs = ("responses", "behavior")
    normalize_by = "response"
    has_stop_gradient = True

    def __call__(self, batch: Batch) -> Losses:
        rewards = batch.rewards()  # (N,)
        ratios = batch.over_tokens(lift(batch.logps) - lift(batch.behavior_logps)).detach()
        taper = torch.where(rewards < 0, ratios.clamp(max=0).exp(), 1.0)
        logps = batch.means() if self.length_normalize else batch.sums()
        return role_losses(batch, -rewards * taper * logps, taper=taper)
