"""APO-zero against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import math

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient

APOZero = load("apo_zero")


def formula(beta: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        up, down = 1 / (1 + math.exp(-beta * positive)), 1 / (1 + math.exp(-beta * negative))
        return 1 - up + down, -beta * up * (1 - up), beta * down * (1 - down)

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5: rewards 0.6 and -0.4. 1 - 0.6456563 + 0.4013123 = 0.7556560.

    Positive: -0.6456563 * 0.3543437 * 0.5 = -0.1143921; negative: 0.4013123 * 0.5986877 * 0.5 = 0.1201304.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = APOZero(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.7556560], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1143921] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1201304, 0], abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.6, 1.5])
def test_equals_a_plain_loop(beta):
    assert_loop(APOZero(beta=beta), formula(beta))


def test_each_response_is_moved_by_itself():
    """The slope of the positive is the same beside any negative, greatest at the reference, and fades on both sides."""
    batch = tiny.batch(*[[(POSITIVE, [h]), (NEGATIVE, [other])] for h, other in ((0, 0), (0, 9), (3, 0), (-3, 0))])
    slopes = gradient(APOZero(beta=1.0)(batch).losses, batch)[::2, 0].tolist()
    assert slopes[0] == slopes[1] == pytest.approx(-0.25, abs=1e-6)
    assert slopes[2] == pytest.approx(slopes[3], abs=1e-6) and -0.25 < slopes[2] < 0
