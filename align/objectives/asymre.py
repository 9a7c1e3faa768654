"""AsymRE: Asymmetric REINFORCE for off-policy reinforcement learning (Arnal et al., 2025).

https://arxiv.org/abs/2506.20520. For each logged roll-out y of reward r

    L = -(r - V - delta_v) * log pi(y)

with sequence sums, V the mean reward of the prompt's roll-outs, no ratio and no KL. delta_v < 0 lowers the baseline, so
good roll-outs count more than bad ones; at 0 stale data collapsed in all of the paper's runs. r is `reward` in the
rows, else 1 and -1 by role. Nothing bounds the push on a bad roll-out but delta_v and the learning rate. Where all
roll-outs of a prompt have the same reward, bad ones too, they are imitated, with weight -delta_v.
Read in notes, not in the paper's own text; whether it divides by the length is not verified, we do not.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.03 nat a token,
KL is at most 0.06.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses, Objective
from align.objectives._prompts import group_means
from align.objectives._responses import role_losses
from align.schema import option


@dataclass(frozen=True)
class AsymRE(Objective):
    """REINFORCE on logged roll-outs against the mean reward of their prompt, lowered; no reference, no bound."""

    delta_v: float = option(
        -0.1, ge=-10, le=10, doc="Added to the baseline, in units of reward; below 0 favours the good."
    )

    needs = ("responses",)
    normalize_by = "response"

    def __call__(self, batch: Batch) -> Losses:
        rewards = batch.rewards().to(batch.sums().dtype)  # (N,)
        advantage = rewards - group_means(batch, rewards) - self.delta_v
        return role_losses(batch, -advantage * batch.sums(), advantage=advantage)
