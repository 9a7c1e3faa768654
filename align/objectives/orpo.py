"""ORPO: Monolithic Preference Optimization without Reference Model (Hong, Lee and Thorne, EMNLP 2024).

https://arxiv.org/abs/2403.07691, Eqs. 6 and 7, for each pair of a positive y_w and a negative y_l of a prompt

    L = NLL(y_w) - lambda * log sigmoid( log odds(y_w) - log odds(y_l) ),    odds(y) = p / (1 - p)

with p the exponential of the mean log-prob a token, and NLL its negative log (the mean a token of each response).
A prompt with several positives and negatives gives all their pairs, and NLL counts once a pair.
`nll: trl` weighs all positive tokens of the step alike, as TRL's ORPOTrainer does in a batch. TRL also counts the
tokens of the prompt there, which an objective never sees: only with prompts of one token do the two agree.
Ours: a mean log-prob above -1e-6 counts as -1e-6, where the odds would be infinite.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.02 nat a token,
KL is at most 0.06.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from align.objectives import Batch, Losses
from align.objectives._pairs import of_pairs, pair_losses
from align.objectives._preferences import LikelihoodPairs
from align.schema import option


@dataclass(frozen=True)
class ORPO(LikelihoodPairs):
    """Imitates the positive and prefers it to the negative by the ratio of their odds; no reference."""

    lambda_: float = option(0.1, ge=0, doc="Weight of the odds ratio term beside the likelihood term.")

    def __call__(self, batch: Batch) -> Losses:
        means = batch.means()  # (N,)
        likely = means.clamp(max=-1e-6)
        positive, negative = of_pairs(batch, likely - torch.log(-torch.expm1(likely)))  # log odds
        nll = -of_pairs(batch, means)[0] if self.nll == "paper" else self.nll_a_token(batch)
        margin = positive - negative  # (P,)
        return pair_losses(nll - self.lambda_ * F.logsigmoid(margin), margin)
