"""Which prompts make up each optimiser step: a pure function of the seed and the step number.

So a resumed run, or one on another number of ranks, sees the same prompts at the same step, and nothing needs
to be saved or re-read for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class StepPlan:
    """Cuts an endless shuffled stream of rows into optimiser steps of `prompts_per_step` rows.

    Every epoch is a new permutation; a row with weight w appears w times an epoch (its fractional part in a
    random share of the epochs). Steps run across the border of two epochs, so only the last one can be short.
    However small `epochs` is, there is a step.
    """

    def __init__(
        self,
        weights: Sequence[float],
        *,
        prompts_per_step: int,
        epochs: float,
        max_steps: int | None,
        seed: int,
    ):
        self.prompts_per_step = prompts_per_step
        per_epoch, self._order = sum(weights), []
        wanted = max(1, round(epochs * per_epoch)) if max_steps is None else max_steps * prompts_per_step
        epoch = 0
        while len(self._order) < wanted:
            self._order += _epoch_order(weights, seed, epoch)
            epoch += 1
        self._order = self._order[:wanted]
        self.epochs = len(self._order) / per_epoch

    def __len__(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(len(self._order) / self.prompts_per_step)

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of a step (0-based), over all ranks."""
        return self._order[step * self.prompts_per_step : (step + 1) * self.prompts_per_step]

    def rows_between(self, first: int, last: int) -> list[int]:
        """Distinct rows of the steps first..last-1, in the order of their first use."""
        return list(dict.fromkeys(self._order[first * self.prompts_per_step : last * self.prompts_per_step]))


def _epoch_order(weights: Sequence[float], seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    chance = torch.rand(len(weights), generator=generator).tolist()
    copies = [int(weight) + (draw < weight - int(weight)) for weight, draw in zip(weights, chance, strict=True)]
    rows = [row for row, count in enumerate(copies) for _ in range(count)]
    return [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]
