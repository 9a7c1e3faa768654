"""CRINGE: The CRINGE Loss: Learning what language not to model (Adolphs et al., ACL 2023).

https://arxiv.org/abs/2211.05826. p_t is the policy's probability of token t of a response; means are over its tokens.

    good: mean_t -log p_t      bad: alpha * mean_t log(1 + exp(s_t - s'_t))

s_t is the logit of the bad answer's token, s'_t that of a token drawn in its place from the policy's k likeliest, the
bad one left out: what the policy would rather have said. Both have a gradient. Differences of logits are differences of
log-probs, so the pass through the head tells the log-prob of the drawn token (`extras`); the draw depends on the seed,
the step, the prompt and the place, not on the cut of the step. Where no draw is at hand all other tokens together take
its place, s' = log(1 - p_t): that is unlikelihood.

Checked against the authors' code (ParlAI, projects/cringe): alpha is 1 there too, the paper tried 0.5 to 5; its mean is
over the tokens of a batch, ours over those of a response. Their rounds of sampling and labelling between trainings are
left to the user.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 2.8 nat a token,
KL is at most 2.0.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses, Objective, lift
from align.objectives._responses import by_role, log_rest, role_losses
from align.schema import option


@dataclass(frozen=True)
class CRINGE(Objective):
    """Imitates positives; lowers each token of negatives below one the policy likes; either may be missing."""

    alpha: float = option(1.0, ge=0, doc="Weight of the contrastive term beside the likelihood of the positives.")
    k: int = option(5, ge=1, le=1000, doc="How many of the likeliest tokens the alternative is drawn from.")

    needs = ("responses",)
    normalize_by = "response"

    @property
    def extras(self) -> tuple[str, ...]:
        return ("alternatives",)

    @property
    def num_alternatives(self) -> int:
        return self.k

    def __call__(self, batch: Batch) -> Losses:
        drawn = batch.extras.get("alternatives")
        alternatives = log_rest(batch.logps) if drawn is None else lift(drawn)  # (N, T)
        contrast = batch.over_tokens(F.softplus(lift(batch.logps) - alternatives)) / batch.lengths()
        return role_losses(batch, by_role(batch, -batch.means(), self.alpha * contrast), contrast=contrast)
