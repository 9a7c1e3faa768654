"""D2O: Distributional Dispreference Optimization (Duan et al., Findings of EMNLP 2024).

https://arxiv.org/abs/2403.03419, Eq. 3. For a prompt x with negative y_l and K self-samples y_i

    L = -log sigmoid( beta/K * sum_i h(y_i) - alpha * h(y_l) ),    h(y) = log pi(y|x) - log pi_ref(y|x)

with sequence sums. One scalar, sigmoid(-z), weighs all K+1 responses of a prompt, which is what makes the
method "distributional" (Eq. 4). K = 1 and alpha = beta is DPO with the sample as the positive.

Ours: several negatives of a prompt enter as the mean of their log-ratios, as the samples do, so a prompt stays
one unit. The paper's two references (one under the samples, one under the negatives) are a matter of
`ref_logps`: the recipe's `reference.samples` names the second one. The paper's equation was read in
third-party notes that agree with each other, not in an official implementation (none was found).

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 2.3 nat a token,
KL is at most 2.5.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import NEGATIVE, SAMPLE, Batch, Losses, Objective
from align.objectives._prompts import role_means
from align.schema import option


@dataclass(frozen=True)
class D2O(Objective):
    """Pushes down negatives, held by samples of the policy's own; needs no positives."""

    alpha: float = option(0.1, gt=0, doc="Strength of the push on the negatives, per nat of log-ratio.")
    beta: float = option(0.1, ge=0, doc="Strength of the hold on the samples, per nat of log-ratio.")

    needs = ("reference", "negatives", "samples")
    normalize_by = "prompt"

    def __call__(self, batch: Batch) -> Losses:
        log_ratios = batch.log_ratios()  # (N,)
        z = self.beta * role_means(batch, log_ratios, SAMPLE) - self.alpha * role_means(batch, log_ratios, NEGATIVE)
        detached = z.detach()  # (U,)
        metrics = {"margin": detached, "accuracy": (detached > 0).float(), "prompt_weight": (-detached).sigmoid()}
        return Losses(-F.logsigmoid(z), metrics)
