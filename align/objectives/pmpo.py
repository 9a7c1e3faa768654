"""PMPO: Preference Optimization as Probabilistic Inference (Abdolmaleki et al., ICLR 2025).

https://arxiv.org/abs/2410.04166. For a prompt with good answers G, bad answers B, and samples S of the reference

    L = -alpha * mean_G log pi(y) + (1 - alpha) * mean_B log pi(y) + beta * mean_S (log pi_ref(y) - log pi(y))

with sequence sums; the last term estimates KL(pi_ref || pi), and holds the policy. G or B may be empty, their term is
then missing. Only the KL bounds the push on the negatives: with negatives alone the paper asks for beta > 1 - alpha,
else the policy collapses; the default leaves room. The samples must be the reference's (`sampling.every: 0`).
Read in abstract and notes, not in code; how the paper estimates the KL is not verified.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 3.3 nat a token,
KL is at most 3.9.
"""

from dataclasses import dataclass

from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch, Losses, Objective
from align.objectives._prompts import role_means
from align.schema import option


@dataclass(frozen=True)
class PMPO(Objective):
    """Raises positives and lowers negatives, either may be missing, held by the KL on samples of the reference."""

    alpha: float = option(0.5, ge=0, le=1, doc="Weight of the positives; the negatives have the rest to 1.")
    beta: float = option(
        1.0, ge=0, doc="Weight of the KL to the reference; above 1 - alpha where there are no positives."
    )

    needs = ("reference", "responses", "samples")
    normalize_by = "prompt"

    def __call__(self, batch: Batch) -> Losses:
        good, bad = (role_means(batch, batch.sums(), role, may_lack=True) for role in (POSITIVE, NEGATIVE))  # (U,)
        kl = -role_means(batch, batch.log_ratios(), SAMPLE)  # raises without samples: nothing would hold the policy
        return Losses((1 - self.alpha) * bad - self.alpha * good + self.beta * kl, {"kl_estimate": kl.detach()})
