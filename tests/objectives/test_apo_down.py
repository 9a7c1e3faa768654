"""APO-down against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import math

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient

APODown = load("apo_down")


def formula(beta: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        up = 1 / (1 + math.exp(-beta * positive))
        apart = 1 / (1 + math.exp(-beta * (positive - negative)))
        return up + 1 - apart, beta * (up * (1 - up) - apart * (1 - apart)), beta * apart * (1 - apart)

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5: reward 0.6, margin 1. 0.6456563 + 1 - 0.7310586 = 0.9145977.

    Positive: (0.6456563 * 0.3543437 - 0.7310586 * 0.2689414) * 0.5 = (0.2287842 - 0.1966119) * 0.5 = 0.0160861;
    negative: 0.1966119 * 0.5 = 0.0983060. Both are pushed down, the negative harder.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = APODown(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.9145977], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([0.0160861] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.0983060, 0], abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.6, 1.5])
def test_equals_a_plain_loop(beta):
    assert_loop(APODown(beta=beta), formula(beta))


def test_the_positive_stands_still_at_the_reference_and_falls_once_told_apart():
    batch = tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [0.0])], [(POSITIVE, [0.0]), (NEGATIVE, [-9.0])])
    slopes = gradient(APODown(beta=1.0)(batch).losses, batch)[:, 0].tolist()
    assert slopes == pytest.approx([0, 0.25, 0.25, 0], abs=1e-3)
