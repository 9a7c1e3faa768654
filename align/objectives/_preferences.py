"""What objectives on preferences share beyond `_pairs.py`: a likelihood term, a shaped reward, competitions."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives import Batch, Objective
from align.objectives._pairs import of_pairs
from align.schema import option

LARGEST_EXPONENT = 20.0


def shaped_reward(means: Tensor, alpha: float) -> Tensor:
    """(1 - p^-alpha) / alpha of p = exp(means), AlphaPO's reward; the means themselves for alpha = 0.

    Where p^-alpha is beyond e^20 the curve goes on as its tangent: still monotone, finite, and with a gradient.
    """
    if alpha == 0:
        return means
    exponent = -alpha * means
    beyond = F.relu(exponent - LARGEST_EXPONENT)
    return -(torch.expm1(exponent.clamp(max=LARGEST_EXPONENT)) + math.exp(LARGEST_EXPONENT) * beyond) / alpha


def lost_shares(scores: Tensor, rivals: Tensor) -> Tensor:
    """(N,) -log of each response's share in the softmax of `scores` (N,) over itself and its rivals.

    `rivals` (N, N) bool: row i marks whom response i competes with.
    """
    rivals = rivals | torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    ahead = scores[None, :] - scores[:, None]  # before the exponential: exact for scores that are large and alike
    return ahead.masked_fill(~rivals, -math.inf).logsumexp(-1)


@dataclass(frozen=True)
class LikelihoodPairs(Objective):
    """Base of the objectives on pairs, without a reference, that also imitate the positive.

    The likelihood term counts once a pair: a positive with three negatives is imitated three times.
    """

    nll: str = option(
        "paper", choices=("paper", "trl"), doc="Likelihood term: the paper's, or the mean a positive token of the step."
    )

    needs = ("pairs",)
    normalize_by = "pair"

    @property
    def coupled(self) -> bool:
        return self.nll == "trl"

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        positives, _ = of_pairs(batch, batch.lengths().float())
        return {"positive_tokens": positives}

    def nll_a_token(self, batch: Batch) -> Tensor:
        """(P,) whose mean over all pairs of the step is the negative log-likelihood a token of their positives."""
        positives, _ = of_pairs(batch, batch.sums())
        return -positives / self.whole_step(batch).values["positive_tokens"].mean()
