"""ROPO against numbers worked out by hand and a plain loop, and its largest weight."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, sigmoid

ROPO = load("ropo")


def test_values_by_hand():
    """Margin beta * D = 0.5 * 2 = 1, a = 3: factors 12/16 and 36/16.

    loss = 0.75 * 0.3132617 + 2.25 * sigmoid(-1) = 0.2349463 + 2.25 * 0.2689414 = 0.8400644.
    Slope of the margin: -0.75 * 0.2689414 * (1 + 3 * 0.7310586) = -0.6440829; times beta -0.3220415.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = ROPO(beta=0.5, alpha=3.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.8400644], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    assert gradient(result.losses, batch)[batch.mask].tolist() == pytest.approx(
        [-0.3220415] * 2 + [0.3220415], abs=1e-6
    )


@pytest.mark.parametrize("beta, alpha", [(0.1, 6.0), (1.0, 1.0), (0.5, 14.0)])
def test_equals_a_plain_loop(beta, alpha):
    def formula(positive, negative):
        z = beta * (positive - negative)
        wrong, one, two = sigmoid(-z), 4 * alpha / (1 + alpha) ** 2, 4 * alpha**2 / (1 + alpha) ** 2
        slope = beta * (-one * wrong - two * wrong * (1 - wrong))
        return one * math.log(1 + math.exp(-z)) + two * wrong, slope, -slope

    assert_loop(ROPO(beta=beta, alpha=alpha), formula)


@pytest.mark.parametrize("alpha, peak", [(1.0, 1.0), (2.0, 0.75), (6.0, 0.5833333), (14.0, 0.5357143)])
def test_the_largest_weight_is_one(alpha, peak):
    """At sigmoid(-z) = (1 + a) / (2a): a grid of sigmoid(-z) from 0.001 to 0.999 finds it there."""
    wrong = torch.arange(1, 1000, dtype=torch.float64) / 1000
    batch = tiny.batch(*[[(POSITIVE, [-z]), (NEGATIVE, [0.0])] for z in (wrong / (1 - wrong)).log().tolist()])
    weights = -gradient(ROPO(beta=1.0, alpha=alpha)(batch).losses, batch)[:, 0][0::2]
    assert weights.max().item() == pytest.approx(1.0, abs=2e-3) and weights.max() < 1 + 1e-5
    assert wrong[weights.argmax()].item() == pytest.approx(peak, abs=2e-3)
