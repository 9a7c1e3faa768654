"""What objectives on single responses, positive or negative, share."""

import torch
from torch import Tensor

from align.objectives import NEGATIVE, POSITIVE, Batch, Losses, lift

LARGEST_LOGP = -1e-6  # log-probs are not taken to be larger where 1 - p is asked for: it would be 0


def by_role(batch: Batch, positive: Tensor | float, negative: Tensor | float) -> Tensor:
    """(N,) `positive` for positives, `negative` for negatives, 0 for samples."""
    zero = torch.zeros_like(batch.role, dtype=torch.float32)
    return torch.where(batch.role == POSITIVE, positive, torch.where(batch.role == NEGATIVE, negative, zero))


def role_metrics(batch: Batch, **values: Tensor) -> dict[str, Tensor]:
    """name/positive and name/negative -> the `values` (N,) of the responses of that role, detached."""
    names = {POSITIVE: "positive", NEGATIVE: "negative"}
    return {
        f"{key}/{name}": v.detach()[batch.role == role] for key, v in values.items() for role, name in names.items()
    }


def role_losses(batch: Batch, losses: Tensor, **values: Tensor) -> Losses:
    """Losses (N,), one a response, with `role_metrics` of `values`."""
    return Losses(losses, role_metrics(batch, **values))


def log_rest(logps: Tensor) -> Tensor:
    """log(1 - p) of log-probs; those above -1e-6 are taken to be that, and have no gradient."""
    return (-torch.expm1(lift(logps).clamp(max=LARGEST_LOGP))).log()
