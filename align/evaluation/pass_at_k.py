"""pass@k: the chance that one of k answers to a prompt is right, from n answers to each; with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from align.evaluation.intervals import bootstrap_runs

Counts = Sequence[tuple[int, int]]  # for each prompt (answers, right ones)


class Estimate(NamedTuple):
    value: float
    low: float  # of the 95 % bootstrap interval
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, Eq. 1). Raises ValueError if k > n."""
    if not 0 < k <= answers or not 0 <= right <= answers:
        raise ValueError(f"{right} right of {answers} answers say nothing about pass@{k}")
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def estimate(runs: Sequence[Counts], k: int, seed: int = 0) -> Estimate:
    """pass@k, averaged over prompts and runs (seeds); all runs answered the same prompts in the same order."""
    return _with_interval(_table(runs, k), seed)


def difference(runs: Sequence[Counts], than: Sequence[Counts], k: int, seed: int = 0) -> Estimate:
    """How much higher pass@k is in `runs` than in `than`, prompt by prompt and run by run."""
    return _with_interval(_table(runs, k) - _table(than, k), seed)


def _table(runs: Sequence[Counts], k: int) -> np.ndarray:
    return np.array([[pass_at_k(answers, right, k) for answers, right in counts] for counts in runs])


def _with_interval(values: np.ndarray, seed: int) -> Estimate:
    return Estimate(float(values.mean()), *bootstrap_runs(values, seed=seed))
