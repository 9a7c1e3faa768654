"""Rates and their intervals, by hand."""

from __future__ import annotations

import math

import pytest

from align.planning.duration import Span, clock, rate, total


def test_a_steady_rate_has_no_error():
    found = rate([(100, 2.0), (50, 1.0), (200, 4.0)])
    assert found.mean == pytest.approx(0.02)
    assert found.error == pytest.approx(0.0)


def test_error_of_a_ratio():
    """Residuals -10, 0, 10 of work 100 each: their deviation is 10, over root 3, over 100, times t of 2 degrees."""
    found = rate([(100, 90.0), (100, 100.0), (100, 110.0)])
    assert found.mean == pytest.approx(1.0)
    assert found.error == pytest.approx(4.30 * 10 / math.sqrt(3) / 100)
    assert found.times(50).low == pytest.approx(50 - 50 * found.error)


def test_a_single_timing_says_little():
    assert rate([(10, 5.0)]) == rate([(20, 10.0)])
    assert rate([(10, 5.0)]).times(10).low == 0.0


def test_errors_of_one_probe_are_added():
    assert total([Span(3.0, 1.0), Span(4.0, 0.5)]) == Span(7.0, 1.5)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(12.4, "12 s"), (59.9, "60 s"), (61, "1 min 1 s"), (3600 * 2 + 120, "2 h 2 min"), (3600 * 72, "3.0 days")],
)
def test_words(seconds, words):
    assert clock(seconds) == words
