"""AlphaPO against numbers worked out by hand, a plain loop, and SimPO (TRL is asked in test_trl_cpo_parity.py)."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from align.objectives._preferences import shaped_reward
from tests import tiny
from tests.objectives.loops import assert_bare_loop, bare, gradient, sigmoid, uneven_pairs

AlphaPO, SimPO = load("alphapo"), load("simpo")


def test_values_by_hand():
    """Means -1 and -2, alpha 0.5: r = (1 - e^0.5) / 0.5 = -1.2974425 and (1 - e^1) / 0.5 = -3.4365637.

    beta 1.5, gamma 0.25: z = 1.5 * 2.1391211 - 0.25 = 2.9586817, loss log(1 + e^-z) = 0.0505860.
    sigmoid(-z) = 0.0493278; times 1.5 and the slopes of r, e^0.5 and e^1: 0.1219917 and 0.2011303; half of each for
    each of the two tokens of the negative.
    """
    batch = bare(tiny.batch([(POSITIVE, [-1.0]), (NEGATIVE, [-3.0, -1.0])]))
    result = AlphaPO(beta=1.5, gamma=0.25, alpha=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.0505860], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([3.2086817], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1219917, 0], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1005651, 0.1005651], abs=1e-6)


def test_alpha_minus_one_compares_probabilities():
    """Means log 0.5 and log 0.2, beta 2, gamma 0: z = 2 * (0.5 - 0.2) = 0.6, loss log(1 + e^-0.6) = 0.4374880."""
    batch = bare(tiny.batch([(POSITIVE, [math.log(0.5)]), (NEGATIVE, [math.log(0.2)])]))
    assert AlphaPO(beta=2.0, gamma=0.0, alpha=-1.0)(batch).losses.item() == pytest.approx(0.4374880, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.25, 0.9, -0.5])
def test_equals_a_plain_loop(alpha):
    def formula(positive, negative, beta=1.2, gamma=0.6):
        z = beta * (math.exp(-alpha * negative) - math.exp(-alpha * positive)) / alpha - gamma
        slopes = -beta * sigmoid(-z) * math.exp(-alpha * positive), beta * sigmoid(-z) * math.exp(-alpha * negative)
        return math.log(1 + math.exp(-z)), *slopes

    assert_bare_loop(AlphaPO(beta=1.2, gamma=0.6, alpha=alpha), formula, per_token=True)


@pytest.mark.parametrize("alpha", [0.0, 1e-6, -1e-6])
def test_alpha_zero_is_simpo(alpha):
    batch = bare(uneven_pairs(), shift=-3.0)
    ours, theirs = AlphaPO(beta=1.5, gamma=0.5, alpha=alpha)(batch), SimPO(beta=1.5, gamma=0.5)(batch)
    torch.testing.assert_close(ours.losses, theirs.losses, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradient(ours.losses, batch), gradient(theirs.losses, batch), rtol=1e-4, atol=1e-5)


def test_the_reward_goes_on_as_its_tangent_beyond_the_bound():
    """alpha 1: at a mean of -30 the reward is 1 - e^20 - 10 e^20 = 1 - 11 e^20, with slope e^20."""
    means = torch.tensor([-30.0, -20.0, -1e4], dtype=torch.float64, requires_grad=True)
    rewards = shaped_reward(means, 1.0)
    assert rewards.tolist() == pytest.approx([1 - 11 * math.exp(20), 1 - math.exp(20), 1 - 9981 * math.exp(20)])
    assert torch.autograd.grad(rewards.sum(), means)[0].tolist() == pytest.approx([math.exp(20)] * 3)
