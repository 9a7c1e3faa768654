"""What objectives on pairs of a positive and a negative share: their scores, and the options TRL gives all of them.

A prompt with several positives and negatives gives all their pairs. P pairs.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives import Batch, Losses, Objective, lift
from align.schema import option


def of_pairs(batch: Batch, values: Tensor) -> tuple[Tensor, Tensor]:
    """(P,), (P,): `values` (N,) of the positive and of the negative of each pair."""
    positive, negative = values[batch.pairs].unbind(-1)
    return positive, negative


def pair_losses(losses: Tensor, margin: Tensor) -> Losses:
    """Losses (P,) with the metrics of every pair objective: the margin (P,), and how often it is above 0."""
    detached = margin.detach()
    return Losses(losses, {"margin": detached, "accuracy": (detached > 0).float()})


def per_token(batch: Batch, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """(P,), (P,): scores (P,) of the positive and of the negative of each pair, each over its number of tokens."""
    lengths = of_pairs(batch, batch.lengths())
    return positive / lengths[0], negative / lengths[1]


def smoothed_logistic(margin: Tensor, smoothing: float) -> Tensor:
    """(P,) -log sigmoid of the margin (P,), and of its opposite for the share `smoothing` of flipped labels."""
    return -(1 - smoothing) * F.logsigmoid(margin) - smoothing * F.logsigmoid(-margin)


@dataclass(frozen=True)
class ReferencePairs(Objective):
    """Base of objectives that compare the log-ratios to the reference of a positive and a negative."""

    needs = ("reference", "pairs")
    normalize_by = "pair"


@dataclass(frozen=True)
class DesensitizedPairs(ReferencePairs):
    """Base of the losses of TRL's DPOTrainer, with its one option that concerns all of them."""

    ld_alpha: float = option(
        1.0, ge=0, le=1, doc="LD-DPO: weight of the tokens behind the length of the pair's shorter response; 1 is off."
    )

    def log_ratios_of_pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """(P,), (P,) log-ratio to the reference of the positive and of the negative of each pair, in nats."""
        return self.sums_of_pairs(batch, batch.token_log_ratios())

    def sums_of_pairs(self, batch: Batch, values: Tensor) -> tuple[Tensor, Tensor]:
        """(P,), (P,) sums of `values` (N, T) over the tokens of the two responses of each pair.

        LD-DPO (Liu et al., 2024, https://arxiv.org/abs/2409.06411, Eq. 9): tokens beyond the length that the two
        have in common count `ld_alpha` times. A response in several pairs has a sum of its own in each.
        """
        if self.ld_alpha == 1:
            return of_pairs(batch, batch.over_tokens(values))
        shared = batch.lengths()[batch.pairs].amin(-1)  # (P,)
        inside = torch.arange(values.shape[1], device=values.device) < shared[:, None]  # (P, T)
        weight = batch.mask if batch.token_weight is None else batch.mask * batch.token_weight
        weighed = torch.where(batch.mask, lift(values), 0.0) * weight  # (N, T) what `over_tokens` sums
        sums = [torch.where(inside, rows, self.ld_alpha * rows).sum(-1) for rows in weighed[batch.pairs.T]]
        return sums[0], sums[1]


@dataclass(frozen=True)
class WeightedPairs(DesensitizedPairs):
    """Base of the losses of TRL's DPOTrainer, with its two options that concern those which keep pairs together."""

    wpo: bool = option(False, doc="WPO: weigh a pair by how likely the policy is to write its two responses.")

    @property
    def extras(self) -> tuple[str, ...]:
        return ("concentration",) if self.wpo else ()

    @property
    def has_stop_gradient(self) -> bool:
        return self.wpo  # whose weights have no gradient

    def weighted(self, batch: Batch, losses: Tensor, margin: Tensor) -> Losses:
        """The losses (P,), under `wpo` times the weight of their pair.

        WPO (Zhou et al., EMNLP 2024, https://arxiv.org/abs/2406.11827, Eq. 2 with the alignment of its section 3.2):
        a response weighs exp of the mean over its tokens of log p - log sum_v p_v^2, without gradient. The authors'
        released code cuts the weight of a pair off at 1; TRL does not, and neither do we.
        """
        if self.wpo:
            aligned = (lift(batch.logps) - batch.extras["concentration"]).detach()
            weight = (torch.where(batch.mask, aligned, 0.0).sum(-1) / batch.lengths()).exp()
            losses = losses * weight[batch.pairs].prod(-1)
        return pair_losses(losses, margin)
