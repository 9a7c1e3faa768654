"""NSR, PSR and W-REINFORCE: The Surprising Effectiveness of Negative Reinforcement (Zhu et al., NeurIPS 2025).

https://arxiv.org/abs/2506.01347. For each token of a logged roll-out, right or wrong

    L = -min( r A, clip(r, 1 - c, 1 + c) A ),    r = p / p_behavior,    A = w+ if right, -w- if wrong

with no baseline and no normalisation by the spread; the mean is over all tokens. NSR is positive_weight 0, PSR is
positive_weight 1 and negative_weight 0, W-REINFORCE, the paper's advice and the default, 0.1 and 1. Clip 0.2 is their
code's. On wrong roll-outs the clip stops the push at r = 1 - c, nothing bounds it from r > 1 (ours: r is not taken
above e^10, beyond which there is no gradient). Pushing down on what is likely spreads probability over the
alternatives, which keeps pass@k; NSR alone decays after some hundred steps.

Their code adds an entropy bonus: minus 0.001 times the entropy of the policy at each token. `entropy_weight` sets it;
it is 0 here, since it takes the slower way through the LM head. Off-policy by more than an update or two, look at
`topr`.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 0.13 nat a token,
KL is at most 0.06.
"""

from dataclasses import dataclass

import torch

from align.objectives import Batch, Losses, Objective, lift
from align.objectives._responses import by_role
from align.schema import option

LARGEST_LOG_RATIO = 10.0  # r is not taken to be larger than e^10


@dataclass(frozen=True)
class NSR(Objective):
    """Reinforces right roll-outs a little and pushes wrong ones down, with PPO's clip; no reference."""

    positive_weight: float = option(0.1, ge=0, doc="Reward of a right roll-out; 0 is NSR.")
    negative_weight: float = option(1.0, ge=0, doc="Penalty of a wrong roll-out; 0 is PSR.")
    clip: float = option(0.2, gt=0, lt=1, doc="How far the ratio to the behaviour policy may go before the push ends.")
    entropy_weight: float = option(0.0, ge=0, doc="Bonus for the entropy at each token, a nat; their code: 0.001.")

    needs = ("responses", "behavior")
    normalize_by = "token"

    @property
    def extras(self) -> tuple[str, ...]:
        return ("entropy",) if self.entropy_weight else ()

    def __call__(self, batch: Batch) -> Losses:
        ratio = (lift(batch.logps) - lift(batch.behavior_logps)).clamp(max=LARGEST_LOG_RATIO).exp()  # (N, T)
        advantage = by_role(batch, self.positive_weight, -self.negative_weight)[:, None]
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        losses = -torch.minimum(ratio * advantage, clipped * advantage)[batch.mask]  # (tokens,)
        is_clipped = ((ratio != clipped) & (ratio * advantage > clipped * advantage))[batch.mask]
        metrics = {"clipped": is_clipped.float(), "ratio": ratio.detach()[batch.mask]}
        if self.entropy_weight:
            entropy = lift(batch.extras["entropy"])[batch.mask]
            losses = losses - self.entropy_weight * entropy
            metrics["entropy"] = entropy.detach()
        return Losses(losses, metrics)
