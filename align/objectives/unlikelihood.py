"""Unlikelihood: Neural Text Generation with Unlikelihood Training (Welleck et al., ICLR 2020).

https://arxiv.org/abs/1908.04319. p_t is the policy's probability of token t of a response y; means are over its tokens.

    good: mean_t -log p_t                             bad: alpha * mean_t -log(1 - p_t)            level: sequence
    good: mean_t [ -log p_t + alpha * sum_c -log(1 - p_t(c)) ],  c earlier tokens but t's own      level: token

`token` is the paper's token-level loss on positives: every token that has occurred in prompt or response is a negative
candidate (bad responses, if there are any, as in `sequence`). `sequence` takes whole bad answers as the candidates. The
gradient in the logit of a bad token carries the factor p_t, so the push fades as the token becomes unlikely: it is
bounded.
The authors sum over tokens and clamp 1 - p at 1e-5; we take means, and clamp log p of bad answers at -1e-6.

Left out: their sequence-level loss on repeated 4-grams of the policy's own continuations, which needs generation at
every other step.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 2.6 nat a token,
KL is at most 1.9.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses, Objective
from align.objectives._responses import by_role, log_rest, role_losses
from align.schema import option


@dataclass(frozen=True)
class Unlikelihood(Objective):
    """Imitates positives and lowers each token of negatives by -log(1 - p), which fades; either may be missing."""

    alpha: float = option(1.0, ge=0, doc="Weight of the unlikelihood beside the likelihood of the positives.")
    level: str = option(
        "sequence", choices=("sequence", "token"), doc="Candidates: bad answers, or earlier tokens too."
    )

    needs = ("responses",)
    normalize_by = "response"

    @property
    def extras(self) -> tuple[str, ...]:
        return ("repeats",) if self.level == "token" else ()

    def __call__(self, batch: Batch) -> Losses:
        lengths = batch.lengths()
        good, bad = -batch.means(), -batch.over_tokens(log_rest(batch.logps)) / lengths  # (N,)
        if self.level == "token":
            good = good + self.alpha * batch.over_tokens(batch.extras["repeats"]) / lengths
        return role_losses(batch, by_role(batch, good, self.alpha * bad), unlikelihood=bad)
