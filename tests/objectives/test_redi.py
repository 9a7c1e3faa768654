"""REDI against numbers worked out by hand and a plain loop, and as the limit of SimPO."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_bare_loop, bare, gradient, uneven_pairs

REDI, SimPO = load("redi"), load("simpo")


def test_values_by_hand():
    """Means -0.6 and -1.5, alpha 0.8: loss 0.6 - 0.8 * 1.5 = -0.6. Each of two tokens -1/2 and +0.8/2."""
    batch = bare(tiny.batch([(POSITIVE, [-0.5, -0.7]), (NEGATIVE, [-1.0, -2.0])]))
    result = REDI(alpha=0.8)(batch)
    assert result.losses.tolist() == pytest.approx([-0.6], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([0.9], abs=1e-6)
    assert gradient(result.losses, batch).tolist() == [pytest.approx([-0.5, -0.5]), pytest.approx([0.4, 0.4])]


def test_gamma_by_hand():
    """gamma 0.5, m(y_l) = -2: (e^-1 - 1) / 0.5 = -1.2642411, times alpha 0.8 plus 0.6: loss -0.4113929.

    Slope of the negative: 0.8 * e^-1 = 0.2943036. Undetached it were 0.8 * e^-1 * (1 - 0.5 * 2) = 0.
    """
    batch = bare(tiny.batch([(POSITIVE, [-0.6]), (NEGATIVE, [-2.0])]))
    losses = REDI(alpha=0.8, gamma=0.5)(batch).losses
    assert losses.tolist() == pytest.approx([-0.4113929], abs=1e-6)
    assert gradient(losses, batch)[:, 0].tolist() == pytest.approx([-1.0, 0.2943036], abs=1e-6)


@pytest.mark.parametrize("alpha, gamma", [(0.8, 0.0), (1.0, 0.0), (0.5, 1.5), (0.0, 0.3)])
def test_equals_a_plain_loop(alpha, gamma):
    def formula(positive, negative):
        push = (math.exp(gamma * negative) - 1) / gamma if gamma else negative
        return alpha * push - positive, -1.0, alpha * math.exp(gamma * negative)

    assert_bare_loop(REDI(alpha=alpha, gamma=gamma), formula, per_token=True)


def test_gamma_never_raises_a_negative_and_bounds_the_loss():
    """At m(y_l) = -1000 the term is -alpha / gamma, and its gradient is 0."""
    batch = bare(tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [-1000.0])]))
    losses = REDI(alpha=0.8, gamma=0.1)(batch).losses
    assert losses.item() == pytest.approx(-8.0)
    assert gradient(losses, batch)[1, 0] == 0


def test_alpha_one_is_the_limit_of_simpo():
    """SimPO's gradient over beta / 2, for beta -> 0 and gamma 0."""
    batch = bare(uneven_pairs(), shift=-3.0)
    limit = gradient(SimPO(beta=1e-4, gamma=0.0)(batch).losses, batch) / (1e-4 / 2)
    torch.testing.assert_close(gradient(REDI(alpha=1.0)(batch).losses, batch), limit, rtol=1e-3, atol=1e-4)
