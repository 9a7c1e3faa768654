"""DPO: Direct Preference Optimization (Rafailov et al., NeurIPS 2023), and cDPO.

https://arxiv.org/abs/2305.18290, Eq. 7, for each pair of a positive y_w and a negative y_l of a prompt

    L = -(1 - e) log sigmoid(beta * D) - e log sigmoid(-beta * D),    D = h(y_w) - h(y_l)

with sequence sums, h the log-ratio to the reference, and e the label smoothing of cDPO (Mitchell, 2023);
e = 0 is DPO. A prompt with several positives and negatives gives all their pairs.
TRL 1.16 ignores `label_smoothing` for its `sigmoid` loss; here it is the paper's.
"""

from dataclasses import dataclass

import torch.nn.functional as F

from align.objectives import Batch, Losses, Objective
from align.schema import option


@dataclass(frozen=True)
class DPO(Objective):
    """Prefers the positive of each pair to its negative, held by the reference."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    label_smoothing: float = option(0.0, ge=0, lt=0.5, doc="Share of pairs whose label is taken to be flipped (cDPO).")

    needs = ("reference", "pairs")
    normalize_by = "pair"

    def __call__(self, batch: Batch) -> Losses:
        rewards = self.beta * batch.log_ratios()  # (N,)
        positive, negative = rewards[batch.pairs].unbind(-1)  # (P,), (P,)
        margin = positive - negative
        losses = -(1 - self.label_smoothing) * F.logsigmoid(margin) - self.label_smoothing * F.logsigmoid(-margin)
        detached = margin.detach()
        return Losses(losses, {"margin": detached, "accuracy": (detached > 0).float()})
