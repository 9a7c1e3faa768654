"""KTO: Model Alignment as Prospect Theoretic Optimization (Ethayarajh et al., ICML 2024).

https://arxiv.org/abs/2402.01306, Eqs. 7 and 8 as TRL counts. For each response y, good or bad, by itself

    good: w+ * (1 - sigmoid(beta * (h(y) - z)))      bad: w- * (1 - sigmoid(beta * (z - h(y))))

with sequence sums, h the log-ratio to the reference, and z the estimate of KL(policy || reference), without gradient:
the mean of h over responses y' behind prompts they do not belong to, not below 0. The paper shifts the responses by
one within a micro-batch, and so does TRL 1.16; here each response of the optimiser step is put behind the step's next
other prompt, so z is one number a step, whatever its cut. Where nobody supplies it, or with one prompt a step, z = 0:
that is TRL's `apo_zero_unpaired`.

A batch of negatives alone is legal, but z is then the mean of what is being pushed down, and soon 0. The loss
saturates on negatives far above the reference, and on positives far below. The weights should balance the classes:
w+ n+ / (w- n-) from 1 to 4/3, says TRL after the paper's Eq. 8; to 3/2 in the authors' code.

Bound: in tests/test_divergence.py, 30 steps on negatives alone, good answers lose at most 2.1 nat a token,
KL is at most 2.2.
"""

from dataclasses import dataclass

from align.objectives import Batch, Losses, Objective
from align.objectives._responses import by_role, role_metrics
from align.schema import option


@dataclass(frozen=True)
class KTO(Objective):
    """Judges each response by itself, by how far it is from the policy's mean distance to the reference."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    positive_weight: float = option(1.0, ge=0, doc="Weight of positives.")
    negative_weight: float = option(1.0, ge=0, doc="Weight of negatives.")

    needs = ("reference", "responses", "mismatched")
    normalize_by = "response"

    def __call__(self, batch: Batch) -> Losses:
        ratios = batch.log_ratios()  # (N,)
        mismatched = None if batch.step is None else batch.step.values.get("mismatched")
        is_known = mismatched is not None and len(mismatched) > 0
        kl = mismatched.detach().mean().clamp(min=0).to(ratios) if is_known else ratios.new_zeros(())
        sign = by_role(batch, 1.0, -1.0)
        losses = (
            by_role(batch, self.positive_weight, self.negative_weight) * (-sign * self.beta * (ratios - kl)).sigmoid()
        )
        metrics = role_metrics(batch, reward=self.beta * ratios)
        return Losses(losses, metrics | {"kl": kl.expand(len(losses))})
