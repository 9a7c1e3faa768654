"""The hinge loss against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, uneven_pairs

Hinge = load("hinge")


def formula(beta: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        missing = 1 - beta * (positive - negative)
        return (missing, -beta, beta) if missing > 0 else (0.0, 0.0, 0.0)

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.25: margin 0.5, loss 0.5; slope 0.25 on every token.

    The second pair is 5 nats apart, more than 1 / 0.25 = 4: neither loss nor gradient.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])], [(NEGATIVE, [-2.0]), (POSITIVE, [3.0])])
    result = Hinge(beta=0.25)(batch)
    assert result.losses.tolist() == pytest.approx([0.5, 0.0], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([0.5, 1.25], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.25, -0.25], abs=1e-6)
    assert found[1:].flatten().tolist() == pytest.approx([0.25, 0, 0, 0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 0.4, 2.0])
def test_equals_a_plain_loop(beta):
    assert_loop(Hinge(beta=beta), formula(beta))


def test_both_sides_of_the_hinge_are_in_the_plain_loop():
    losses = Hinge(beta=0.4)(uneven_pairs()).losses
    assert (losses == 0).any() and (losses > 0).any()
