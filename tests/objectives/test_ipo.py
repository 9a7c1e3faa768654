"""IPO against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient

IPO = load("ipo")


def formula(beta: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        missing = positive - negative - 0.5 / beta
        return missing**2, 2 * missing, -2 * missing

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5: 2 nats apart, 1 too far. Loss 1; slope 2, which draws the pair together.

    The second pair is 0.5 apart, 0.5 too near: loss 0.25, slope -1, which pushes it apart.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])], [(POSITIVE, [0.5]), (NEGATIVE, [0.0])])
    result = IPO(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([1.0, 0.25], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([2.0, 0.5], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([2.0, 2.0], abs=1e-5)
    assert found[1:, 0].tolist() == pytest.approx([-2.0, -1.0, 1.0], abs=1e-5)


def test_length_normalize_by_hand():
    """Means 0.6 and -0.8: 1.4 apart, 0.4 too far: loss 0.16, slope 0.8, half of it on each of two tokens."""
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    losses = IPO(beta=0.5, length_normalize=True)(batch).losses
    assert losses.tolist() == pytest.approx([0.16], abs=1e-6)
    found = gradient(losses, batch)
    assert found[0].tolist() == pytest.approx([0.4, 0.4], abs=1e-5)
    assert found[1].tolist() == pytest.approx([-0.8, 0.0], abs=1e-5)


@pytest.mark.parametrize("beta", [0.1, 0.7])
@pytest.mark.parametrize("length_normalize", [False, True])
def test_equals_a_plain_loop(beta, length_normalize):
    assert_loop(IPO(beta=beta, length_normalize=length_normalize), formula(beta), per_token=length_normalize)


def test_stands_still_at_its_margin():
    batch = tiny.batch([(POSITIVE, [3.0]), (NEGATIVE, [-2.0])])
    losses = IPO(beta=0.1)(batch).losses  # 1 / (2 * 0.1) = 5 nats
    assert losses.item() == pytest.approx(0, abs=1e-6)
    assert gradient(losses, batch).abs().max().item() == pytest.approx(0, abs=1e-5)
