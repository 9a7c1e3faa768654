"""Bootstrap intervals and McNemar's test against scipy-free closed forms and known values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from align.evaluation.intervals import bootstrap, mcnemar, of_ratio


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


def test_bootstrap_is_the_normal_interval_of_many_questions():
    values = np.array([1.0] * 300 + [0.0] * 200)
    low, high = bootstrap(values)
    half = 1.96 * math.sqrt(0.6 * 0.4 / 500)
    assert (low, high) == (pytest.approx(0.6 - half, abs=0.006), pytest.approx(0.6 + half, abs=0.006))
    varied = np.random.default_rng(0).normal(size=50)
    assert bootstrap(varied) == bootstrap(varied) != bootstrap(varied, seed=1), "deterministic under a seed"


def test_bootstrap_covers_as_often_as_it_says():
    draw, covered = np.random.default_rng(0), 0
    for trial in range(60):
        low, high = bootstrap((draw.random(80) < 0.7).astype(float), seed=trial)
        covered += low <= 0.7 <= high
    assert 50 <= covered <= 60  # 57 expected of 60


def test_what_never_varies_has_no_width():
    assert bootstrap(np.ones(7)) == (1.0, 1.0)


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
