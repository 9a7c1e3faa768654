"""InfoNCA: Noise Contrastive Alignment of Language Models with Explicit Rewards (Chen et al., NeurIPS 2024).

https://arxiv.org/abs/2402.05369. Over all responses y_i, good and bad, to a prompt

    L = -sum_i t_i log softmax_i(beta * h),    t = softmax(r / alpha)

with sequence sums, h the log-ratio to the reference, and r the rewards in the rows. Without rewards t is uniform over
the positives. One positive and one negative without rewards is DPO; so is alpha -> 0, against the best of the group.
Like DPO it compares, so all likelihoods may fall (the paper's other loss, NCA, is about that).
Alpha is the temperature of the rewards, in their unit, as in the authors' code, which runs it near 0 (1e-3, 1e-4: only
the best response is a target); 1 is ours. A comment there says that the paper's symbol is its inverse. Also theirs, and
left out: 0.01 added to the first reward, against ties.

A prompt is one unit. Its example weight is the mean of its responses'; within the group, weights have no say.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.06 nat a token,
KL is at most 0.06.
"""

from dataclasses import dataclass

import torch

from align.objectives import NEGATIVE, POSITIVE, Batch, Losses, Objective
from align.objectives._preferences import lost_shares
from align.objectives._prompts import prompt_index, role_means
from align.schema import option


@dataclass(frozen=True)
class InfoNCA(Objective):
    """Fits the softmax of a prompt's log-ratios to that of their rewards; DPO for whole groups."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    alpha: float = option(1.0, gt=0, doc="Temperature of the rewards, in their unit.")

    needs = ("reference", "positives", "negatives")
    normalize_by = "prompt"

    def __call__(self, batch: Batch) -> Losses:
        scores = self.beta * batch.log_ratios()  # (N,)
        index, num_prompts = prompt_index(batch)
        group = index[:, None] == index[None, :]
        # Without rewards the negatives' target underflows to 0 exactly.
        rewards = torch.where(batch.role == POSITIVE, 0.0, -1e4) if batch.reward is None else batch.reward / self.alpha
        target = (-lost_shares(rewards, group)).exp()
        missed = target * lost_shares(scores, group)
        detached = scores.detach()
        margin = role_means(batch, detached, POSITIVE) - role_means(batch, detached, NEGATIVE)
        metrics = {"margin": margin, "accuracy": (margin > 0).float()}
        return Losses(missed.new_zeros(num_prompts).index_add(0, index, missed), metrics)
