"""How sure a measurement is: bootstrap intervals, and McNemar's exact test of two answers to the same questions."""

from __future__ import annotations

import functools
import math

import numpy as np

RESAMPLES = 10_000
_REDRAWN = 2_000  # resamples of statistics that are no plain means


def bootstrap(values: np.ndarray, *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """(low, high) of the mean of `values` (N,), by the percentiles of the means of resamples of the N.

    Efron and Tibshirani, 1993. Questions are taken to be independent; nothing is said of other training seeds.
    """
    draw, count = np.random.default_rng(seed), len(values)
    means = [values[draw.integers(count, size=(100, count))].mean(-1) for _ in range(RESAMPLES // 100)]
    tail = (1 - level) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_runs(values: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """(low, high), 95 %, of the mean of `values` (runs, N), resampling runs and the N that all of them share."""
    draw, (runs, count) = np.random.default_rng(seed), values.shape
    of_runs = values[draw.integers(runs, size=(RESAMPLES, runs))].mean(1)  # (resamples, N)
    means = np.take_along_axis(of_runs, draw.integers(count, size=(RESAMPLES, count)), 1).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(won: int, lost: int) -> float:
    """The two-sided exact p of `won` questions that only one got right, and `lost` that only the other did.

    McNemar, 1947, by the binomial distribution: under the null a question that they disagree on is a fair coin's.
    """
    count = won + lost
    tail = sum(math.comb(count, k) for k in range(min(won, lost) + 1))
    return min(1.0, 2 * tail / 2**count)


def resampled(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """(2000, C) the means of resamples of the rows of `values` (N, C): the same ones for the same N and seed.

    So what two models did with the same rows is compared row by row.
    """
    parts = np.array_split(_counts(len(values), seed), 20)  # as floats they take four times the memory
    return np.concatenate([part.astype(float) @ values for part in parts]) / len(values)


@functools.lru_cache(maxsize=3)
def _counts(count: int, seed: int) -> np.ndarray:
    """(2000, N) how often each of N rows is in a resample."""
    draw = np.random.default_rng(seed)
    return draw.multinomial(count, np.full(count, 1 / count), size=_REDRAWN).astype(np.uint16)


def percentiles(draws: np.ndarray) -> tuple[float, float]:
    """(low, high), 95 %, of a statistic in resamples; those in which it is undefined (nan) say nothing."""
    defined = draws[~np.isnan(draws)]
    if not len(defined):
        return math.nan, math.nan
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
