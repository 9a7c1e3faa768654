"""DiscoPOP against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import math

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient

DiscoPOP = load("discopop")


def formula(beta: float, tau: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        z = beta * (positive - negative)
        m, logistic, exponential = 1 / (1 + math.exp(-z / tau)), math.log(1 + math.exp(-z)), math.exp(-z)
        slope = m * (1 - m) / tau * (exponential - logistic) - (1 - m) / (1 + math.exp(z)) - m * exponential
        return (1 - m) * logistic + m * exponential, beta * slope, -beta * slope

    return pair


def slopes(margins: list[float], tau: float) -> list[float]:
    """The loss's slope along the margin, for beta 1."""
    batch = tiny.batch(*[[(POSITIVE, [margin]), (NEGATIVE, [0.0])] for margin in margins])
    return gradient(DiscoPOP(beta=1.0, tau=tau)(batch).losses, batch)[::2, 0].tolist()


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5, tau 0.5: z = 1, m = sigmoid(2) = 0.8807971.

    0.1192029 * 0.3132617 + 0.8807971 * 0.3678794 = 0.0373417 + 0.3240271 = 0.3613688. Slope, with m' = 0.2099872:
    0.2099872 * (0.3678794 - 0.3132617) - 0.1192029 * 0.2689414 - 0.8807971 * 0.3678794 = -0.3446167; half a token.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = DiscoPOP(beta=0.5, tau=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.3613688], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1723083] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1723083, 0], abs=1e-6)


@pytest.mark.parametrize("beta, tau", [(0.05, 0.05), (0.3, 0.2), (1.0, 1.0)])
def test_equals_a_plain_loop(beta, tau):
    assert_loop(DiscoPOP(beta=beta, tau=tau), formula(beta, tau))


def test_pulls_the_wrong_way_in_its_valley():
    """For tau 0.05 between -2.3714 tau and 1.4401 tau, where training starts; for tau 0.11 nowhere."""
    low, high = -2.3714 * 0.05, 1.4401 * 0.05
    assert slopes([low, high], 0.05) == pytest.approx([0, 0], abs=1e-3)
    assert all(slope > 0 for slope in slopes([low + 0.01, 0.0, high - 0.01], 0.05))
    assert all(slope < 0 for slope in slopes([-1.0, low - 0.01, high + 0.01, 1.0], 0.05))
    assert all(slope < 0 for slope in slopes([step / 100 for step in range(-100, 100)], 0.11))


@pytest.mark.parametrize("tau", [0.05, 1.0])
def test_pairs_told_apart_wrongly_do_not_explode(tau):
    """exp(200) alone overflows in float32; times m it is nothing for tau 0.05 and 1 for tau 1: DPO's slope is left."""
    assert slopes([-200.0], tau) == pytest.approx([-1.0], abs=1e-6)
