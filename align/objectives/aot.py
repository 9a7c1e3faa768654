"""AOT: Alignment via Optimal Transport (Melnyk et al., NeurIPS 2024).

https://arxiv.org/abs/2406.05882. Not each pair but the distribution over all P pairs of a step is to be better: its
quantiles are compared, so two samples u and v of P values are sorted, u_(1) <= ... <= u_(P), and

    L = 1/P sum_r l(u_(r) - v_(r)),    l(d) = -(1 - e) log sigmoid(beta * d) - e log sigmoid(-beta * d)

    paired (default)   u_i = log pi(y_w) - log pi(y_l)     v_i = log pi_ref(y_w) - log pi_ref(y_l)
    unpaired           u_i = h(y_w)                        v_i = h(y_l)          h = log pi - log pi_ref

with sequence sums. If sorting moves nothing, or with a single pair, it is DPO.

Here a step is the optimiser's whole step. Every micro-batch knows the values of all others (`collect`), without
gradient, and finds the rank of its own by their place in the step. Paired, v has no gradient, and the loss of pair i
is l(u_i - v_(rank of u_i)). Unpaired, the partner has one too, and may be in another micro-batch: so pair i takes
half of its chosen's loss and half of its rejected's, x = 1/2 l(u_i - v') + 1/2 l(u' - v_i), the partners v' and u'
held fixed. Over the step each loss is counted in two halves; but of the two gradients that belong to it each half has
only one, halved. 2x - sg(x) has the value of x and twice its gradient, which is then that of L, exactly.

TRL 1.16 sorts within each micro-batch of each device, so there the result depends on its size. The paper's other
choices of l (hinge, least squares) and its soft sorting are left out, as in TRL; `label_smoothing` is TRL's, whether
the paper has it is not verified. Example weights multiply the losses, the sorting knows nothing of them. A response
in several pairs counts once in each; among equals the other value of a pair decides, not the order of the rows.
`wpo` has no meaning here: its weights belong to pairs, which sorting takes apart.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.08 nat a token,
KL is at most 0.08.
"""

from dataclasses import dataclass

from torch import Tensor

from align.objectives import Batch, Losses
from align.objectives._pairs import DesensitizedPairs, pair_losses, smoothed_logistic
from align.schema import option


@dataclass(frozen=True)
class AOT(DesensitizedPairs):
    """Prefers positives to negatives as distributions: quantiles of a step's pairs, not each pair."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    label_smoothing: float = option(0.0, ge=0, lt=0.5, doc="Share of comparisons taken to be flipped.")
    unpaired: bool = option(False, doc="Compare all positives with all negatives, whatever prompt they belong to.")

    @property
    def has_stop_gradient(self) -> bool:
        return self.unpaired

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        upper, lower = self.samples(batch)
        return {"upper": upper.detach(), "lower": lower.detach()}

    def samples(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(P,), (P,) u and v of the batch's own pairs, in nats."""
        if self.unpaired:
            return self.log_ratios_of_pairs(batch)
        upper, lower = (self.sums_of_pairs(batch, logps) for logps in (batch.logps, batch.ref_logps))
        return upper[0] - upper[1], lower[0] - lower[1]

    def __call__(self, batch: Batch) -> Losses:
        step = self.whole_step(batch)
        upper, lower = self.samples(batch)

        def partners(name: str, other: str) -> Tensor:
            """(P,) for each own value of the sample `name`, what of `other` has its rank."""
            order = step.values[other].argsort(stable=True)  # (K,) pairs of the step; decides among equals
            order = order[step.values[name][order].argsort(stable=True)]
            own = order.argsort()[step.first[name] :][: len(upper)]
            return step.values[other].sort().values[own]

        def losses(difference: Tensor) -> Tensor:
            return smoothed_logistic(self.beta * difference, self.label_smoothing)

        result = losses(upper - partners("upper", "lower"))
        if self.unpaired:
            halves = (result + losses(partners("lower", "upper") - lower)) / 2
            result = 2 * halves - halves.detach()
        return pair_losses(result, self.beta * (upper - lower))
