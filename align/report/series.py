"""metrics.jsonl as a few hundred points a metric, whatever the number of steps, read on from where it was left.

Steps are put into buckets of equal width, a power of two, at most `BUCKETS` of them. A bucket keeps count, mean,
smallest and largest value, so that a plot of them hides no spike. While steps are fewer than buckets, each has its own.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from align.errors import UserError, shorten

BUCKETS = 512
_TOGETHER = 4096  # lines that are put into buckets together


class Series:
    """One metric. `first`, `last`, `low`, `high` and `mean` are of single steps, not of buckets."""

    def __init__(self, width: int):
        self.width, self.not_finite = width, 0
        self.first: tuple[int, float] | None = None
        self.last: tuple[int, float] | None = None
        self._sums = np.zeros((3, BUCKETS))  # values there, their sum, the sum of their steps
        self._low, self._high = np.full(BUCKETS, np.inf), np.full(BUCKETS, -np.inf)

    def add(self, steps: np.ndarray, values: np.ndarray) -> None:
        """Values (N,) of steps (N,), in their order, all of which fit the buckets."""
        finite = np.isfinite(values)
        self.not_finite += int((~finite).sum())
        steps, values = steps[finite], values[finite]
        if not len(steps):
            return
        self.first = self.first or (int(steps[0]), float(values[0]))
        self.last = (int(steps[-1]), float(values[-1]))
        at = steps // self.width
        for row, weights in zip(self._sums, (None, values, steps), strict=True):
            row += np.bincount(at, weights, BUCKETS)
        np.minimum.at(self._low, at, values)
        np.maximum.at(self._high, at, values)

    def widen(self, width: int) -> None:
        """Makes every bucket `width` steps wide; it is a larger power of two."""
        while self.width < width:
            half = BUCKETS // 2
            self._sums = _halved(self._sums.reshape(3, half, 2).sum(-1), 0.0)
            self._low = _halved(self._low.reshape(half, 2).min(-1), np.inf)
            self._high = _halved(self._high.reshape(half, 2).max(-1), -np.inf)
            self.width *= 2

    def points(self) -> np.ndarray:
        """(P, 4) of the buckets with values: mean step, mean, smallest and largest value."""
        held = self._sums[0] > 0
        count, total, steps = self._sums[:, held]
        return np.stack([steps / count, total / count, self._low[held], self._high[held]], -1)

    @property
    def count(self) -> int:
        return int(self._sums[0].sum())

    @property
    def low(self) -> float:
        return float(self._low.min())

    @property
    def high(self) -> float:
        return float(self._high.max())

    @property
    def mean(self) -> float:
        return float(self._sums[1].sum() / self._sums[0].sum())


def _halved(pairs: np.ndarray, empty: float) -> np.ndarray:
    return np.concatenate([pairs, np.full_like(pairs, empty)], -1)


class Metrics:
    """All metrics of a run, by their names in metrics.jsonl."""

    def __init__(self, file: Path):
        self.file = file
        self._begin()

    def _begin(self) -> None:
        self.by_name: dict[str, Series] = {}
        self.steps, self.last_step, self.width = 0, 0, 1  # lines, the highest step, steps a bucket
        self.total_tokens, self.step_seconds = 0, 0.0  # seconds as tokens / tokens_per_second gives them
        self._offset = 0
        self._waiting: list[tuple[int, dict]] = []  # lines that are not in the buckets yet

    def read_on(self) -> Metrics:
        """Reads what has been added. Raises UserError for a line that is damaged; one cut off at the end is left."""
        size = self.file.stat().st_size if self.file.exists() else 0
        if size < self._offset:  # gone on from a checkpoint, behind which all was forgotten
            self._begin()
        if size > self._offset:
            with open(self.file, "rb") as lines:
                lines.seek(self._offset)
                for line in lines:
                    if not line.endswith(b"\n"):
                        break
                    self._offset += len(line)
                    self._add(line)
        self._fold()
        return self

    def items(self) -> Iterator[tuple[str, Series]]:
        """(name, series) of the metrics that have a finite value."""
        return ((name, series) for name, series in self.by_name.items() if series.count)

    def _add(self, line: bytes) -> None:
        try:
            values = json.loads(line)
            step = values.pop("step")
            self.last_step = max(self.last_step, step)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            where, what = f"{self.file}:{self.steps + 1}", f"is damaged: {shorten(error)}"
            raise UserError(where, what, "delete the line") from None
        self.steps += 1
        speed, tokens = values.get("tokens_per_second"), values.get("tokens", 0)
        self.total_tokens += tokens
        self.step_seconds += tokens / speed if speed else 0.0
        self._waiting.append((step, values))
        if len(self._waiting) == _TOGETHER:
            self._fold()

    def _fold(self) -> None:
        """Puts the lines that wait into buckets that are wide enough for them."""
        found: defaultdict[str, tuple[list, list]] = defaultdict(lambda: ([], []))
        for step, values in self._waiting:
            for name, value in values.items():
                if type(value) is float or type(value) is int:
                    steps, column = found[name]
                    steps.append(step)
                    column.append(value)
        self._waiting = []
        while self.last_step // self.width >= BUCKETS:
            self.width *= 2
        for series in self.by_name.values():
            series.widen(self.width)
        for name, (steps, column) in found.items():
            if name not in self.by_name:
                self.by_name[name] = Series(self.width)
            self.by_name[name].add(np.array(steps), np.array(column, float))
