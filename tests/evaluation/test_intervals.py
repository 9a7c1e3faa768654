"""Bootstrap intervals and McNemar's test against scipy-free closed forms and known values."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest

from align.evaluation.intervals import (
    bootstrap_runs,
    mcnemar,
    of_change,
    of_ratio,
    of_share,
    percentiles,
    resampled,
)


def test_mcnemar_by_counting_all_coins():
    """Every sequence of fair coins that is no likelier than what was seen, on either side."""
    for won, lost in [(0, 0), (1, 0), (3, 0), (5, 1), (2, 7), (4, 4)]:
        count, far = won + lost, abs(won - lost)
        coins = itertools.product([1, -1], repeat=count)
        expected = sum(abs(sum(one)) >= far for one in coins) / 2**count
        assert mcnemar(won, lost) == pytest.approx(expected), (won, lost)


def test_mcnemar_known_values():
    assert mcnemar(10, 2) == pytest.approx(0.03857421875)  # R: binom.test(10, 12)
    assert mcnemar(2, 10) == mcnemar(10, 2)
    assert mcnemar(700, 500) < 1e-7 and math.isfinite(mcnemar(3000, 100))


def test_mcnemar_of_many_questions():
    """Near the normal distribution's, and at once: of 41,000 flips each of the binomials has 12,000 digits."""
    began = time.process_time()
    normal = math.erfc((21_000 - 20_000 - 1) / math.sqrt(41_000) / math.sqrt(2))
    assert mcnemar(20_000, 21_000) == pytest.approx(normal, rel=1e-2)
    assert time.process_time() - began < 5


def test_bootstrap_is_the_normal_interval_of_many_questions():
    values = np.array([[1.0] * 300 + [0.0] * 200])
    half = 1.96 * math.sqrt(0.6 * 0.4 / 500)
    expected = (pytest.approx(0.6 - half, abs=0.006), pytest.approx(0.6 + half, abs=0.006))
    assert bootstrap_runs(values) == expected and percentiles(resampled(values.T)[:, 0]) == expected
    varied = np.random.default_rng(0).normal(size=(1, 50))
    assert bootstrap_runs(varied) == bootstrap_runs(varied) != bootstrap_runs(varied, seed=1), "the same under a seed"


def test_bootstrap_covers_as_often_as_it_says():
    draw, covered = np.random.default_rng(0), 0
    for trial in range(60):
        low, high = percentiles(resampled((draw.random((80, 1)) < 0.7).astype(float), seed=trial)[:, 0])
        covered += low <= 0.7 <= high
    assert 50 <= covered <= 60  # 57 expected of 60


def test_shares_of_none_and_all_are_no_certainty():
    """0 of 10: z^2 / (n + z^2). 5 of 10: 1.96 sqrt(2.5 + 0.9604) / 13.8416 to either side."""
    assert of_share(0, 10) == (0.0, pytest.approx(3.8416 / 13.8416))
    assert of_share(10, 10) == (pytest.approx(1 - 3.8416 / 13.8416), 1.0)
    assert of_share(5, 10) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))
    assert of_change(0, 0, 24) == (pytest.approx(-1.96 / 26), pytest.approx(1.96 / 26))
    assert of_change(24, 0, 24) == (pytest.approx(24 / 26 - 1.96 * math.sqrt(25 - 24**2 / 26) / 26), 1.0)


def test_intervals_of_shares_cover_as_often_as_they_say():
    """Over all that may come of n questions, by its probability."""

    def chance(*counts: int, of: tuple[float, ...]) -> float:
        ways = math.factorial(sum(counts)) / math.prod(map(math.factorial, counts))
        return ways * math.prod(share**count for share, count in zip(of, counts, strict=True))

    for n, truth in ((20, 0.05), (40, 0.5), (60, 0.97)):
        hits = [k for k in range(n + 1) if of_share(k, n)[0] <= truth <= of_share(k, n)[1]]
        assert 0.92 < sum(chance(k, n - k, of=(truth, 1 - truth)) for k in hits) < 0.99, (n, truth)
    for n, won, lost in ((20, 0.1, 0.1), (30, 0.3, 0.1), (40, 0.05, 0.02)):
        covered = 0.0
        for one, other in itertools.product(range(n + 1), repeat=2):
            if one + other <= n:
                low, high = of_change(one, other, n)
                inside = low <= won - lost <= high
                covered += inside * chance(one, other, n - one - other, of=(won, lost, 1 - won - lost))
        assert 0.94 < covered < 0.995, (n, won, lost, covered)


def test_the_interval_of_a_ratio_covers_as_often_as_it_says():
    """Mean log-prob a token, where answers differ in length and the tokens of longer ones are likelier."""
    draw, covered, possible = np.random.default_rng(0), 0, np.arange(5, 60)
    truth = -((3 - possible / 60) * possible).sum() / possible.sum()
    for _ in range(1000):
        lengths = draw.choice(possible, size=60)
        sums = -(3 - lengths / 60) * lengths + draw.normal(size=60) * np.sqrt(lengths)
        low, high = of_ratio(sums, lengths)
        covered += low < truth < high
    assert 920 <= covered <= 975


def test_the_interval_of_a_ratio_by_hand():
    """Ratio 6/4; residuals -0.5, 0.5; s^2 = 0.5 * 2 / 1; half width 1.96 * 1 / 4."""
    assert of_ratio(np.array([1.0, 5.0]), np.array([1.0, 3.0])) == pytest.approx((1.5 - 0.49, 1.5 + 0.49))
    assert of_ratio(np.array([1.0]), np.array([1.0])) is None
    assert of_ratio(np.full(4, 2.0), np.full(4, 1.0)) == (2.0, 2.0)
