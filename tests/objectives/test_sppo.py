"""SPPO against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient

SPPO, IPO = load("sppo"), load("ipo")


def formula(beta: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        up, down = positive - 0.5 / beta, negative + 0.5 / beta
        return up**2 + down**2, 2 * up, 2 * down

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5, so the targets are 1 and -1: 0.2^2 + 0.2^2 = 0.08; slopes 0.4 and 0.4."""
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = SPPO(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.08], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([2.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([0.4, 0.4], abs=1e-5)
    assert found[1].tolist() == pytest.approx([0.4, 0], abs=1e-5)


@pytest.mark.parametrize("beta", [0.001, 0.1, 0.8])
def test_equals_a_plain_loop(beta):
    assert_loop(SPPO(beta=beta), formula(beta))


def test_each_response_has_a_target_of_its_own():
    """Pairs that IPO leaves alone, as they are 2 nats apart, are moved if they are so at the wrong place."""
    batch = tiny.batch([(POSITIVE, [3.0]), (NEGATIVE, [1.0])])
    assert gradient(IPO(beta=0.25)(batch).losses, batch).abs().max().item() == pytest.approx(0, abs=1e-5)
    assert gradient(SPPO(beta=0.5)(batch).losses, batch)[:, 0].tolist() == pytest.approx([4, 4], abs=1e-5)


def test_with_the_published_beta_the_targets_are_far_away():
    """500 nats: near the reference every slope is 1000 within 2 %, so the learning rate decides where it ends."""
    batch = tiny.batch([(POSITIVE, [5.0]), (NEGATIVE, [3.0])], [(POSITIVE, [-5.0]), (NEGATIVE, [-3.0])])
    found = gradient(SPPO()(batch).losses, batch)[:, 0].tolist()
    assert found == pytest.approx([-990, 1006, -1010, 994], abs=1e-3)
