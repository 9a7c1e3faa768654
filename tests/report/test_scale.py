"""Axes: places by hand, ticks at round values inside the axis."""

from __future__ import annotations

import math

import pytest

from align.report import scale


def test_places_are_linear_or_logarithmic():
    assert scale.Scale(0, 10, 100, 200)(2.5) == 125
    assert scale.Scale(1, 100, 200, 100, is_log=True)(10) == pytest.approx(150)


@pytest.mark.parametrize(
    "low, high", [(0, 1), (-5.2, -3.1), (0, 1e-5), (3, 3), (0, 0), (-1e7, 2e7), (0.4, 0.41), (1e-3, 50)]
)
def test_ticks_are_round_few_and_inside(low, high):
    found = scale.of_values(low, high, 0, 100)
    ticks = found.ticks(5)
    assert found.low < low and high < found.high and 1 <= len(ticks) <= 6
    for value, label in ticks:
        assert found.low <= value <= found.high
        plain = label.replace("k", "e3").replace("M", "e6")
        assert float(plain) == pytest.approx(value, abs=1e-12), "the label says where the tick is"
    assert len({label for _, label in ticks}) == len(ticks)


def test_far_apart_positive_values_are_logarithmic():
    assert scale.of_values(0.1, 1000, 0, 1).is_log and not scale.of_values(0.0, 1000, 0, 1).is_log
    ticks = scale.of_values(0.1, 1000, 0, 1).ticks(6)
    assert [label for _, label in ticks] == ["0.1", "1", "10", "100", "1000"]
    assert all(value == pytest.approx(10 ** round(math.log10(value))) for value, _ in ticks)
