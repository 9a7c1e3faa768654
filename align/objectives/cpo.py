"""CPO: Contrastive Preference Optimization (Xu et al., ICML 2024).

https://arxiv.org/abs/2401.08417, for each pair of a positive y_w and a negative y_l of a prompt

    L = -(1 - e) log sigmoid(z) - e log sigmoid(-z) + alpha * NLL(y_w),    z = beta * (log pi(y_w|x) - log pi(y_l|x))

with sequence sums, in NLL too. e = 0 is the paper; e, the label smoothing, is TRL's addition. A prompt with several
positives and negatives gives all their pairs, and NLL counts once a pair.
`nll: trl` is TRL's CPOTrainer: NLL is the mean over all positive tokens of the batch, here of the whole step. For
responses of 100 tokens that is a hundredth of the paper's, so alpha means something else.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.02 nat a token,
KL is at most 0.06.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses
from align.objectives._pairs import of_pairs, pair_losses, smoothed_logistic
from align.objectives._preferences import LikelihoodPairs
from align.schema import option


@dataclass(frozen=True)
class CPO(LikelihoodPairs):
    """Imitates the positive and prefers it to the negative by their log-probs; no reference."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the sequence log-prob, per nat.")
    alpha: float = option(1.0, ge=0, doc="Weight of the likelihood term beside the preference term.")
    label_smoothing: float = option(0.0, ge=0, lt=0.5, doc="Share of pairs whose label is taken to be flipped.")

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, batch.sums())
        margin = self.beta * (positive - negative)  # (P,)
        nll = -positive if self.nll == "paper" else self.nll_a_token(batch)
        return pair_losses(smoothed_logistic(margin, self.label_smoothing) + self.alpha * nll, margin)
