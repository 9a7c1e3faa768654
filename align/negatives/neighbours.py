"""Answers to similar prompts as candidates: the positives of the nearest prompts by the sentence encoder.

Every prompt is compared with every other, in blocks that are read from disk: 10,000 prompts take a second, a million
some hours. Prompts that are held out give no candidates, or their right answers would be unlearned. Rows without a
prompt ask for nothing that another's answer could miss: they have no neighbours.

Shapes: P prompts, D size of a vector, M neighbours of a prompt.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from align.data import sources
from align.negatives.pool import Candidate, Pool, PromptRow, plain

_QUERIES, _ROWS = 256, 4096  # prompts compared at once


def nearest(vectors: np.ndarray, may_give: np.ndarray, count: int) -> np.ndarray:
    """(P, M) int32 the `count` most similar other prompts, nearest first, of (P, D) unit vectors; -1 fills up.

    `may_give` (P,) bool says who can be a neighbour.
    """
    total = len(vectors)
    found = np.full((total, count), -1, np.int32)
    for start in range(0, total, _QUERIES):
        query = np.asarray(vectors[start : start + _QUERIES], np.float32)
        best, where = np.empty((len(query), 0), np.float32), np.empty((len(query), 0), np.int32)
        for first in range(0, total, _ROWS):
            near = query @ np.asarray(vectors[first : first + _ROWS], np.float32).T
            near[:, ~may_give[first : first + _ROWS]] = -np.inf
            others = np.arange(first, first + near.shape[1], dtype=np.int32)
            near[others == np.arange(start, start + len(query))[:, None]] = -np.inf  # no neighbour of its own
            best = np.hstack([best, near])
            where = np.hstack([where, np.broadcast_to(others, near.shape)])
            best, where = _highest(best, where, count)
        found[start : start + len(query), : best.shape[1]] = np.where(np.isfinite(best), where, -1)
    return found


def _highest(values: np.ndarray, where: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` highest of each row, in descending order, and where they are from."""
    if values.shape[1] > count:
        top = np.argpartition(values, -count, axis=1)[:, -count:]
        values, where = np.take_along_axis(values, top, 1), np.take_along_axis(where, top, 1)
    order = np.lexsort((where, -values), axis=1)
    return np.take_along_axis(values, order, 1), np.take_along_axis(where, order, 1)


class Neighbours:
    """The neighbours of each prompt of a pool, on disk."""

    def __init__(self, pool: Pool, vectors: np.ndarray, holdout: float, path: Path, count: int):
        """`vectors` (P, D) of the prompts, unit length, in memory or mapped."""
        self.pool, self.path = pool, path
        asks, may_give = np.ones(len(pool), bool), np.zeros(len(pool), bool)
        for index in range(len(pool)):
            row = pool[index]
            asks[index] = row.head["prompt"] != ""
            may_give[index] = asks[index] and _may_give(row, holdout)
        np.where(asks[:, None], nearest(vectors, may_give, count), np.int32(-1)).tofile(path)
        self._table = np.memmap(path, np.int32, mode="r", shape=(len(pool), count))

    def candidates(self, index: int, row: PromptRow) -> list[Candidate]:
        """The answers of the neighbours of `row`, which is the pool's at `index`; none to a question in its words."""
        found, asked = [], plain(row.prompt_words)
        for number in self._table[index]:
            other = self.pool[int(number)] if number >= 0 else None
            if other is not None and plain(other.prompt_words) != asked:
                for response in other.positives:
                    kept = {name: response[name] for name in ("text", "role", "tool_calls") if name in response}
                    found.append(Candidate(kept, f"neighbour {other.key}"))
        return found

    def close(self) -> None:
        """Ends the use of the table and deletes its file."""
        del self._table
        self.path.unlink(missing_ok=True)


def _may_give(row: PromptRow, holdout: float) -> bool:
    if not row.positives:
        return False
    return not sources.is_held_out(row.example(row.positives), holdout)
