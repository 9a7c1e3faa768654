"""NCA against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import math

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient

NCA = load("nca")


def formula(beta: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        up, down = 1 / (1 + math.exp(-beta * positive)), 1 / (1 + math.exp(-beta * negative))
        loss = -math.log(up) - 0.5 * math.log(1 - up) - 0.5 * math.log(1 - down)
        return loss, beta * (0.5 * up - (1 - up)), beta * 0.5 * down

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5: rewards 0.6 and -0.4.

    log(1 + e^-0.6) + 1/2 log(1 + e^0.6) + 1/2 log(1 + e^-0.4) = 0.4374879 + 0.5187440 + 0.2565076 = 1.2127395.
    Positive: (1/2 * 0.6456563 - 0.3543437) * 0.5 = -0.0157578; negative: 1/2 * 0.4013123 * 0.5 = 0.1003281.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = NCA(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([1.2127395], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.0157578] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1003281, 0], abs=1e-6)


@pytest.mark.parametrize("beta", [0.01, 0.5, 1.3])
def test_equals_a_plain_loop(beta):
    assert_loop(NCA(beta=beta), formula(beta))


@pytest.mark.parametrize("reward, sign", [(-1.0, -1), (0.0, -1), (2.0, 1)])
def test_draws_the_positive_to_a_reward_of_log_2(reward, sign):
    batch = tiny.batch([(POSITIVE, [math.log(2)]), (NEGATIVE, [0.0])], [(POSITIVE, [reward]), (NEGATIVE, [0.0])])
    found = gradient(NCA(beta=1.0)(batch).losses, batch)[:, 0]
    assert found[0].item() == pytest.approx(0, abs=1e-6)
    assert found[2].sign().item() == sign
