"""NFT: Bridging Supervised Learning and Reinforcement Learning in Math Reasoning: Negative-aware Fine-Tuning.

Chen et al., 2025, https://arxiv.org/abs/2505.18116, and the authors' code. For each token of a logged roll-out, with
R = p / p_behavior and q the share of right roll-outs of its prompt, kept in [0.02, 0.98]

    right: L = -(1 - q) log R      wrong: L = -(1 - q) w log max( (1 - q R) / (1 - q), epsilon )

The wrong ones train, by their likelihood, the policy that is implied for wrong answers if pi is that for right ones.
max passes the gradient straight through: the value is floored, the pull is that of (1 - q R) / (1 - q) over the
floored value. Epsilon is 1 in their 7B script. w = negative_weight: 1 is NFT, 0 is fine-tuning on the right ones
(RFT); in the code below 0 switches to another method, which is refused here. (1 - q) is the code's `normalize` 1. The
log-ratio is not taken above 10. As q -> 0 the wrong ones are pushed ever less, in proportion to q, which is kept at
0.02 or more. Prompts that are all right or all wrong are left out (and counted). The authors divide the sum over
tokens by 1000, we by the number of tokens of the step.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.02 nat a token,
KL is at most 0.03.
"""

from dataclasses import dataclass

import torch

from align.objectives import POSITIVE, Batch, Losses, Objective, lift
from align.objectives._prompts import group_means
from align.schema import option

LARGEST_LOG_RATIO = 10.0


@dataclass(frozen=True)
class NFT(Objective):
    """Likelihood of right roll-outs, and of wrong ones under the policy that the right ones imply; no reference."""

    epsilon: float = option(1.0, gt=0, le=1, doc="Floor of the implied ratio of wrong roll-outs.")
    negative_weight: float = option(1.0, ge=0, doc="Weight of wrong roll-outs; 0 is fine-tuning on the right ones.")

    needs = ("positives", "negatives", "behavior")
    normalize_by = "token"
    has_stop_gradient = True

    def __call__(self, batch: Batch) -> Losses:
        log_ratio = (lift(batch.logps) - lift(batch.behavior_logps)).clamp(max=LARGEST_LOG_RATIO)  # (N, T)
        right = batch.role == POSITIVE
        q = group_means(batch, right.to(log_ratio.dtype)).clamp(0.02, 0.98)[:, None]  # (N, 1)
        implied = (1 - q * log_ratio.exp()) / (1 - q)
        floored = implied.clamp(min=self.epsilon).detach()
        through = (implied - implied.detach()) / floored  # 0, with the gradient: exact however far below the floor
        wrong = -self.negative_weight * (floored.log() + through)
        losses = (1 - q) * torch.where(right[:, None], -log_ratio, wrong)
        return Losses(losses[batch.mask], {"ratio": log_ratio.detach().exp()[batch.mask]})
