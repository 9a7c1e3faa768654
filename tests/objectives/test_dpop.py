"""DPOP against numbers worked out by hand, a plain loop, and DPO."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, sigmoid, uneven_pairs

DPOP, DPO = load("dpop"), load("dpo")


def test_values_by_hand():
    """Log-ratios -0.2 and -0.8, beta 0.5, lambda 3: z = 0.5 * (0.6 - 3 * 0.2) = 0, loss log 2.

    Slopes: -1/2 * 0.5 * (1 + 3) = -1 for the positive's tokens, 1/2 * 0.5 = 0.25 for the negative's.
    The second pair's positive has gained 0.4: no penalty, z = 0.5 * 1.4 = 0.7, loss log(1 + e^-0.7) = 0.4031860,
    slopes -+ 0.3318122 * 0.5 = 0.1659061.
    """
    batch = tiny.batch([(POSITIVE, [-0.1, -0.1]), (NEGATIVE, [-0.8])], [(POSITIVE, [0.4]), (NEGATIVE, [-1.0])])
    result = DPOP(beta=0.5, lambda_=3.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.6931472, 0.4031860], abs=1e-6)
    assert result.metrics["penalty"].tolist() == pytest.approx([0.2, 0.0], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([0.3, 0.7], abs=1e-6)
    assert gradient(result.losses, batch)[batch.mask].tolist() == pytest.approx(
        [-1.0, -1.0, 0.25, -0.1659061, 0.1659061], abs=1e-6
    )


@pytest.mark.parametrize("beta, weight", [(0.3, 50.0), (0.1, 5.0), (1.0, 0.5)])
def test_equals_a_plain_loop(beta, weight):
    def formula(positive, negative):
        z = beta * (positive - negative - weight * max(0.0, -positive))
        push = beta * sigmoid(-z)
        return math.log(1 + math.exp(-z)), -push * (1 + weight * (positive < 0)), push

    assert_loop(DPOP(beta=beta, lambda_=weight), formula)


def test_lambda_zero_is_dpo():
    batch = uneven_pairs()
    ours, theirs = DPOP(beta=0.4, lambda_=0.0)(batch).losses, DPO(beta=0.4)(batch).losses
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, batch))


def test_starts_as_dpo():
    """Policy and reference equal: no penalty yet, and the slope at the kink is DPO's."""
    batch = tiny.batch([(POSITIVE, [0.0, 0.0]), (NEGATIVE, [0.0])])
    found = gradient(DPOP(beta=0.3)(batch).losses, batch)
    assert found.tolist() == [pytest.approx([-0.15, -0.15]), pytest.approx([0.15, 0.0])]
