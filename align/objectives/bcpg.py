"""BCPG and BCPG-NSA: Unearthing Gems from Stones, Policy Optimization with Negative Sample Augmentation (2025).

https://arxiv.org/abs/2505.14403, Eqs. 6 and 7. For each of a prompt's logged roll-outs y_i of reward r_i

    L = -( (r_i - mean r) * sum_j b_ij log p_ij - tau / 2 * h(y_i)^2 ) / |y_i|

mean r over the prompt's roll-outs, h the summed log-ratio to the reference: the square holds the policy near it.
b_ij = beta on tokens of steps judged good (`step_label` 1) in wrong roll-outs, else 1: what was right in a wrong answer
is penalised less (beta in (0, 1); 0.5 was best), not at all (0), or reinforced (below 0). beta = 1, or rows without
judged steps, is BCPG. Weights of steps from the recipe (`contradicting_steps`) come on top, in h too: leave them at 1.
Wrong is role negative; r is `reward` in the rows, else 1 and -1 by role.
Published: tau 1e-3 at answers of thousands of tokens, lr 5e-7. The square is of the sum over all tokens, so tau must
shrink as answers grow. Prompts that are all right or all wrong have no advantage; they are left out, and counted.
The mean is over all roll-outs of a step: that is the paper's mean over prompts where all have equally many.
Read in notes on the paper; no code was found.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.10 nat a token,
KL is at most 0.11.
"""

from dataclasses import dataclass

import torch

from align.objectives import NEGATIVE, Batch, Losses, Objective, lift
from align.objectives._prompts import group_means
from align.objectives._responses import role_losses
from align.schema import option


@dataclass(frozen=True)
class BCPG(Objective):
    """Policy gradient on logged groups, held by the reference; spares the good steps of wrong roll-outs (NSA)."""

    beta: float = option(0.5, ge=-1, le=1, doc="Weight of tokens of good steps in wrong roll-outs; 1 is BCPG.")
    tau: float = option(1e-3, ge=0, doc="Strength of the hold to the reference, per squared nat.")

    needs = ("reference", "positives", "negatives")
    normalize_by = "response"

    def __call__(self, batch: Batch) -> Losses:
        logps, log_ratios = lift(batch.logps), batch.log_ratios()  # (N, T), (N,)
        rewards = batch.rewards().to(logps.dtype)
        advantage = rewards - group_means(batch, rewards)
        if batch.step_label is not None:
            spared = (batch.step_label == 1) & (batch.role == NEGATIVE)[:, None]
            logps = torch.where(spared, self.beta * logps, logps)
        gain = advantage * batch.over_tokens(logps) - self.tau / 2 * log_ratios**2
        return role_losses(batch, -gain / batch.lengths(), advantage=advantage)
