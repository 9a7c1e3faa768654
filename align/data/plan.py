"""Which prompts make up each optimiser step, of rows that are all in memory: a pure function of seed and step number.

So a resumed run, or one on another number of ranks, sees the same prompts at the same step, and nothing needs
to be saved or re-read for that.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Sequence

import torch

from align.data.ledger import Ledger
from align.data.mixture import Mixture
from align.data.stream import SAME_SETTING
from align.data.tokenize import TokenizedRow
from align.errors import UserError


class StepPlan:
    """Cuts an endless shuffled stream of rows into optimiser steps of `prompts_per_step` rows.

    Every epoch is a new permutation; a row with weight w appears w times an epoch (its fractional part in a
    random share of the epochs). Steps run across the border of two epochs, so only the last one can be short.
    However small `epochs` is, there is a step.

    `group_of`: the group that each row belongs to, from 0; `mixture(steps)`: how many rows of each group a step has.
    Then every group has epochs of its own, and the last step is full.
    """

    def __init__(
        self,
        weights: Sequence[float],
        *,
        prompts_per_step: int,
        epochs: float,
        max_steps: int | None,
        seed: int,
        group_of: Sequence[int] | None = None,
        mixture: Callable[[int], Mixture] | None = None,
    ):
        self.prompts_per_step = prompts_per_step
        group_of = group_of or [0] * len(weights)
        members = [[row for row, own in enumerate(group_of) if own == group] for group in range(max(group_of) + 1)]
        wanted = max(1, round(epochs * sum(weights))) if max_steps is None else max_steps * prompts_per_step
        orders = [
            _Order(rows, [weights[row] for row in rows], seed + 7919 * group) for group, rows in enumerate(members)
        ]
        if mixture is None:
            self._order = [orders[0].next() for _ in range(wanted)]
        else:
            steps = math.ceil(wanted / prompts_per_step)
            dealt = mixture(steps)
            self._order = [orders[group].next() for step in range(steps) for group in dealt.take(step)]
        self.epochs = len(self._order) / sum(weights)

    def __len__(self) -> int:
        """Number of optimiser steps."""
        return math.ceil(len(self._order) / self.prompts_per_step)

    def rows(self, step: int) -> list[int]:
        """Indices of the rows of a step (0-based), over all ranks."""
        return self._order[step * self.prompts_per_step : (step + 1) * self.prompts_per_step]

    def rows_between(self, first: int, last: int) -> list[int]:
        """Distinct rows of the steps first..last-1, in the order of their first use."""
        return list(dict.fromkeys(self._order[first * self.prompts_per_step : last * self.prompts_per_step]))


class _Order:
    """Rows one after the other, epoch after epoch."""

    def __init__(self, rows: Sequence[int], weights: Sequence[float], seed: int):
        self.rows, self.weights, self.seed = rows, weights, seed
        self.epoch = 0
        self.coming: list[int] = []  # of this epoch, the next one last

    def next(self) -> int:
        while not self.coming:
            self.coming = [self.rows[index] for index in reversed(_epoch_order(self.weights, self.seed, self.epoch))]
            self.epoch += 1
        return self.coming.pop()


def _epoch_order(weights: Sequence[float], seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    chance = torch.rand(len(weights), generator=generator).tolist()
    copies = [int(weight) + (draw < weight - int(weight)) for weight, draw in zip(weights, chance, strict=True)]
    rows = [row for row, count in enumerate(copies) for _ in range(count)]
    return [rows[index] for index in torch.randperm(len(rows), generator=generator).tolist()]


class PlannedFeed:
    """Rows in memory, in the order of a plan. Nothing in it goes on from step to step."""

    def __init__(self, rows: Sequence[TokenizedRow], plan: StepPlan, titles: Sequence[str] = ()):
        self.all, self.plan = rows, plan
        self.titles = titles or ["rows"] * len(rows)  # what is told together: the source of each row, say

    def __len__(self) -> int:
        return len(self.plan)

    def rows(self, step: int) -> list[TokenizedRow]:
        """The rows of a step, over all ranks."""
        return [self.all[index] for index in self.plan.rows(step)]

    def between(self, first: int, last: int) -> list[TokenizedRow]:
        """Distinct rows of the steps first..last-1, in the order of their first use."""
        return [self.all[index] for index in self.plan.rows_between(first, last)]

    def state(self) -> dict:
        """What `restore` compares: the same on all ranks."""
        return {"rows": self._digest}

    def restore(self, state: dict, step: int, is_first_rank: bool) -> None:
        """Nothing goes on from step to step; raises UserError if the rows are not those that gave the `state`."""
        if "rows" not in state:
            raise UserError("data.streaming", "the checkpoint's run streamed its rows", SAME_SETTING)
        if state["rows"] != self._digest:
            what = "the rows are not those that the checkpoint's run learned from"
            raise UserError("data.sources", what, "put them back, or begin anew with train.resume=false")

    @functools.cached_property
    def _digest(self) -> str:
        """Of all that is learned from, in its order."""
        digest = hashlib.sha256()
        for row in self.all:
            said = [(one.ids, one.role, one.weight, one.reward, one.step_labels) for one in row.responses]
            digest.update(repr((row.prompt_ids, said)).encode())
        return digest.hexdigest()

    def rest(self) -> list[TokenizedRow]:
        """Rows that no step reaches."""
        reached = set(self.plan.rows_between(0, len(self)))
        return [row for index, row in enumerate(self.all) if index not in reached]

    def everything(self, ledger: Ledger) -> Ledger:
        """What became of all rows: the ledger of what was read before the run."""
        return ledger

    def epochs(self) -> dict[str, float]:
        """How often the rows of each title are gone through in the whole run."""
        there = Counter(self.titles)
        drawn = Counter(self.titles[index] for step in range(len(self)) for index in self.plan.rows(step))
        return {title: drawn[title] / count for title, count in there.items()}
