"""DPO for rankings, by the model of Plackett (1975) and Luce (1959) (Rafailov et al., NeurIPS 2023, appendix A.3).

https://arxiv.org/abs/2305.18290. Over all responses y_i to a prompt, ranked by the rewards in the rows

    L = -sum_i log [ exp(s_i) / (exp(s_i) + sum over j ranked strictly below i of exp(s_j)) ],    s = beta * h

with sequence sums and h the log-ratio to the reference. A full ranking is the Plackett-Luce likelihood, two responses
are DPO. Ours: ties do not compete. Without rewards the roles rank, so each positive competes with itself and all
negatives, and the negatives with nobody. L is a sum over ranks: a longer ranking weighs more, as in the paper.

A prompt is one unit. Its example weight is the mean of its responses'; within the ranking, weights have no say.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.07 nat a token,
KL is at most 0.07.
"""

from dataclasses import dataclass

from align.objectives import NEGATIVE, POSITIVE, Batch, Losses, Objective
from align.objectives._preferences import lost_shares
from align.objectives._prompts import prompt_index, role_means
from align.schema import option


@dataclass(frozen=True)
class PlackettLuce(Objective):
    """Prefers each response of a prompt to all that are ranked below it; DPO for rankings."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")

    needs = ("reference", "positives", "negatives")
    normalize_by = "prompt"

    def __call__(self, batch: Batch) -> Losses:
        scores, rank = self.beta * batch.log_ratios(), batch.rewards()  # (N,), (N,)
        index, num_prompts = prompt_index(batch)
        below = (index[:, None] == index[None, :]) & (rank[None, :] < rank[:, None])
        lost = lost_shares(scores, below)
        detached = scores.detach()
        margin = role_means(batch, detached, POSITIVE) - role_means(batch, detached, NEGATIVE)
        metrics = {"margin": margin, "accuracy": (margin > 0).float()}
        return Losses(lost.new_zeros(num_prompts).index_add(0, index, lost), metrics)
