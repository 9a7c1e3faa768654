"""BCO on pairs against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import math

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, uneven_pairs

BCOPair, DPO = load("bco_pair"), load("dpo")


def formula(beta: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        up, down = 1 / (1 + math.exp(-beta * positive)), 1 / (1 + math.exp(-beta * negative))
        return -math.log(up) - math.log(1 - down), -beta * (1 - up), beta * down

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5: rewards 0.6 and -0.4.

    log(1 + e^-0.6) + log(1 + e^-0.4) = 0.4374879 + 0.5130153 = 0.9505032.
    Positive: -sigmoid(-0.6) * 0.5 = -0.1771718; negative: sigmoid(-0.4) * 0.5 = 0.2006562.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = BCOPair(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.9505032], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1771718] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.2006562, 0], abs=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.4, 1.1])
def test_equals_a_plain_loop(beta):
    assert_loop(BCOPair(beta=beta), formula(beta))


def test_is_above_dpo():
    for beta in (0.1, 1.0):
        assert (BCOPair(beta=beta)(uneven_pairs()).losses > DPO(beta=beta)(uneven_pairs()).losses).all()


def test_pushes_the_positive_however_low_the_negative_is():
    """Where DPO has nothing left to do: the slope of the positive knows nothing of the negative."""
    batch = tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [-100.0])])
    assert gradient(BCOPair(beta=1.0)(batch).losses, batch)[:, 0].tolist() == pytest.approx([-0.5, 0], abs=1e-6)
    assert gradient(DPO(beta=1.0)(batch).losses, batch).abs().max() < 1e-6
