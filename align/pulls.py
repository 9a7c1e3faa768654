"""How hard the loss pulls at the log-probs of each role, read off the backward pass, and the factors on these pulls.

Shapes: N responses, T response tokens, M response tokens in all, H hidden size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from align.calibration import Calibration
from align.data.collate import MicroBatch
from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch

ROLES = (NEGATIVE, SAMPLE, POSITIVE)
SMALLEST_PULL = 1e-20  # on a log-prob; below it nothing can be divided by it


class Pulls:
    """The pulls of the optimiser step under way, summed over its micro-batches and, at its end, over ranks.

    `read` are the roles that the objective reads, `size` is H, `world` the number of ranks (whose losses are multiplied
    by it). Works on gradients of log-probs and of the last hidden states alone: no weight is looked at.
    """

    def __init__(self, read: set[int], size: int, world: int, calibration: Calibration | None):
        self.read, self.size, self.world, self.calibration = read, size, world, calibration
        self.negative_weight = 1.0  # the guard's
        self.largest = 0.0  # of the last step: the pull on the role that is pulled at most, the factors left out
        self._begin()

    def _begin(self) -> None:
        self.sides = torch.zeros(2, self.size)  # gradients of the loss by negatives, and by all others
        self.directions = torch.zeros(2, self.size)  # gradients of the mean log-prob of positives and negatives, summed
        self.numbers = torch.zeros(5)  # pulls on ROLES, then how many positives and negatives `directions` are of

    def factors(self) -> dict[int, float]:
        """role -> what the pull on its log-probs is multiplied by; roles that are left as they are do not occur."""
        factors = self.calibration.factors() if self.calibration is not None else {}
        if self.negative_weight != 1.0:
            factors[NEGATIVE] = factors.get(NEGATIVE, 1.0) * self.negative_weight
        return {role: factor for role, factor in factors.items() if factor != 1.0}

    def scaled(self, view: Batch) -> Batch:
        """The same values with gradients times the factor of their response's role."""
        factors = self.factors()
        if not factors:
            return view
        factor = torch.ones_like(view.role, dtype=torch.float32)
        for role, value in factors.items():
            factor = factor.masked_fill(view.role == role, value)

        def scale(values: Tensor) -> Tensor:  # (N, T)
            return values.detach() + factor[:, None] * (values - values.detach())

        extras = {name: scale(values) for name, values in view.extras.items()}
        return dataclasses.replace(view, logps=scale(view.logps), extras=extras)

    def follow(self, batch: MicroBatch, hidden: Tensor, logps: Tensor) -> None:
        """Looks at what the backward pass brings to the hidden states (M, H) and the log-probs (N, T)."""
        if not batch.rows or not logps.requires_grad:
            return
        of_logps: list[Tensor] = []
        logps.register_hook(of_logps.append)
        hidden.register_hook(partial(self._add, batch, of_logps))

    @torch.no_grad()
    def _add(self, batch: MicroBatch, of_logps: list[Tensor], grad: Tensor) -> None:
        grad, pull = grad.float() / self.world, of_logps[0][batch.mask].float() / self.world  # (M, H), (M,)
        role = batch.role[:, None].expand(batch.mask.shape)[batch.mask]  # (M,)
        is_negative = (role == NEGATIVE).to(grad)  # (M,)
        self.sides = self.sides.to(grad) + torch.stack([is_negative @ grad, (1 - is_negative) @ grad])
        is_read = batch.is_for(self.read)[:, None].expand(batch.mask.shape)[batch.mask]
        self.numbers = self.numbers.to(grad)
        for place, one in enumerate(ROLES):
            self.numbers[place] += pull[is_read & (role == one)].sum()
        if self.calibration is not None:
            self._add_directions(batch, grad, torch.where(is_read, pull, 0.0))

    def _add_directions(self, batch: MicroBatch, grad: Tensor, pull: Tensor) -> None:
        """Gradients of mean log-probs: of each token what came to its hidden state, over the pull on its log-prob."""
        self.directions = self.directions.to(grad)
        has_pull = pull.abs() > SMALLEST_PULL  # (M,)
        own = torch.arange(len(batch.role), device=grad.device)[:, None].expand(batch.mask.shape)[batch.mask]  # (M,)
        counts = torch.zeros(len(batch.role), device=grad.device).index_add(0, own, has_pull.float())  # (N,)
        shares = has_pull / torch.where(has_pull, pull, 1.0) / counts[own].clamp(min=1)
        for place, one in enumerate((POSITIVE, NEGATIVE)):
            self.directions[place] += (shares * (batch.role[own] == one)) @ grad
            self.numbers[3 + place] += ((counts > 0) & (batch.role == one)).sum()

    def end(self, total: Callable[[Tensor], Tensor], device: torch.device) -> dict[str, float]:
        """Ends a step: takes in its statistics and returns what is logged. `total` sums a tensor over ranks."""
        parts = [part.flatten().to(device) for part in (self.sides, self.directions, self.numbers)]
        sums = total(torch.cat(parts)).cpu()
        self._begin()
        sides, directions, numbers = sums.split([2 * self.size, 2 * self.size, 5])
        factors = self.factors()
        pulls = {role: value / factors.get(role, 1.0) for role, value in zip(ROLES, numbers.tolist(), strict=False)}
        self.largest = max(abs(value) for value in pulls.values())
        metrics = _sides(*sides.view(2, self.size))
        if self.calibration is not None:
            counts = dict(zip((POSITIVE, NEGATIVE), numbers[3:].tolist(), strict=True))
            rows = dict(zip((POSITIVE, NEGATIVE), directions.view(2, self.size), strict=True))
            norms = {role: row.norm().item() / max(counts[role], 1.0) for role, row in rows.items()}
            metrics["calibration/k"] = self.calibration.k  # of this step
            self.calibration.update({POSITIVE: -pulls[POSITIVE], NEGATIVE: pulls[NEGATIVE]}, norms)
        return metrics

    def state(self) -> dict:
        """What goes on from step to step, in JSON's types."""
        means = self.calibration.means if self.calibration is not None else {}
        return {"largest": self.largest, "calibration": means}

    def restore(self, state: dict) -> None:
        self.largest = state["largest"]
        if self.calibration is not None:
            self.calibration.means = state["calibration"]


def _sides(negative: Tensor, rest: Tensor) -> dict[str, float]:
    """Ratio and cosine of what raises negatives and what raises all others, from the loss's gradients (H,) by each.

    The cosine is that of the gradients with its sign turned: the loss raises one side and lowers the other. At 1 the
    negatives cannot be pushed down without the rest.
    """
    norms = negative.norm().item(), rest.norm().item()
    if min(norms) <= 0:
        return {}
    cosine = -(negative @ rest).item() / norms[0] / norms[1]
    return {"guard/gradient_ratio": norms[0] / norms[1], "guard/gradient_cosine": cosine}
