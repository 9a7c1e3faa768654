"""How sure a measurement is: intervals, and McNemar's exact test of two answers to the same questions.

A bootstrap of a share of 0 or 1, or of answers of which none has flipped, has no width, whatever their number; so
shares and their changes have intervals of their own.
"""

from __future__ import annotations

import functools
import math

import numpy as np

RESAMPLES = 10_000
_REDRAWN = 2_000  # resamples of statistics that are no plain means
_Z = 1.96  # the normal distribution's, for 95 %


def bootstrap_runs(values: np.ndarray, *, seed: int = 0) -> tuple[float, float]:
    """(low, high), 95 %, of the mean of `values` (runs, N), resampling runs and the N that all of them share.

    Efron and Tibshirani, 1993.
    """
    draw, (runs, count) = np.random.default_rng(seed), values.shape
    of_runs = values[draw.integers(runs, size=(RESAMPLES, runs))].mean(1)  # (resamples, N)
    means = np.take_along_axis(of_runs, draw.integers(count, size=(RESAMPLES, count)), 1).mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def of_ratio(tops: np.ndarray, bottoms: np.ndarray) -> tuple[float, float] | None:
    """(low, high), 95 %, of sum of `tops` (N,) by sum of `bottoms` (N,), by its linearised variance; None below 2.

    Cochran, 1977, Sampling Techniques, section 6.4: what is sampled are the N, which need no resampling then.
    """
    count, ratio = len(tops), tops.sum() / bottoms.sum()
    if count < 2:
        return None
    error = math.sqrt(((tops - ratio * bottoms) ** 2).sum() * count / (count - 1)) / bottoms.sum()
    return float(ratio - _Z * error), float(ratio + _Z * error)


def of_share(count: int, total: int) -> tuple[float, float]:
    """(low, high), 95 %, of a share of which `count` of `total` questions were seen: Wilson's score interval (1927)."""
    center = (count + _Z**2 / 2) / (total + _Z**2)
    half = _Z * math.sqrt(count * (total - count) / total + _Z**2 / 4) / (total + _Z**2)
    return max(0.0, center - half), min(1.0, center + half)


def of_change(won: int, lost: int, total: int) -> tuple[float, float]:
    """(low, high), 95 %, of the change (won - lost) / total of a share, both measured on the same questions.

    Agresti and Min, 2005, https://doi.org/10.1002/sim.1781: Wald's interval with half a question more of each of the
    four kinds (won, lost, right or wrong both times).
    """
    won, lost, total = won + 0.5, lost + 0.5, total + 2
    change = (won - lost) / total
    half = _Z * math.sqrt(won + lost - total * change**2) / total
    return max(-1.0, change - half), min(1.0, change + half)


def mcnemar(won: int, lost: int) -> float:
    """The two-sided exact p of `won` questions that only one got right, and `lost` that only the other did.

    McNemar, 1947, by the binomial distribution: under the null a question that they disagree on is a fair coin's.
    """
    count, ways, tail = won + lost, 1, 0  # ways: count over k
    for k in range(min(won, lost) + 1):
        tail, ways = tail + ways, ways * (count - k) // (k + 1)
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
    """(low, high), 95 %, of a statistic in resamples; those in which it is undefined (nan) say nothing.

    Both nan where the resamples are all the same: rows that do not differ say nothing of those that were not drawn.
    """
    defined = draws[~np.isnan(draws)]
    if not len(defined) or np.ptp(defined) <= 1e-12 * (1 + np.abs(defined).max()):
        return math.nan, math.nan
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
