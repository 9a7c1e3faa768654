"""BDPO against numbers worked out by hand, a plain loop, and DPO."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, sigmoid, uneven_pairs

BDPO, DPO = load("bdpo"), load("dpo")


def test_values_by_hand():
    """Log-ratios 0.6 and -log 3, lambda 0.5: the mixture is 0.5 / 3 + 0.5 = 2/3 of the reference.

    beta 2: z = 2 * (0.6 - log(2/3)) = 2 * (0.6 + 0.4054651) = 2.0109302, loss log(1 + e^-z) = 0.1256314.
    sigmoid(-z) = 0.1180601; the positive's slope is -0.2361202, the negative's 0.2361202 times the policy's share of
    the mixture, (0.5 / 3) / (2/3) = 1/4: 0.0590300.
    """
    batch = tiny.batch([(POSITIVE, [0.6]), (NEGATIVE, [-math.log(3)])])
    result = BDPO(beta=2.0, lambda_=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.1256314], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([2.0109302], abs=1e-6)
    assert gradient(result.losses, batch)[:, 0].tolist() == pytest.approx([-0.2361202, 0.0590300], abs=1e-6)


@pytest.mark.parametrize("beta, share", [(0.1, 0.5), (0.7, 0.9), (1.5, 0.1)])
def test_equals_a_plain_loop(beta, share):
    def formula(positive, negative):
        mixture = share * math.exp(negative) + 1 - share
        z = beta * (positive - math.log(mixture))
        push = beta * sigmoid(-z)
        return math.log(1 + math.exp(-z)), -push, push * share * math.exp(negative) / mixture

    assert_loop(BDPO(beta=beta, lambda_=share), formula)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_lambda_one_is_dpo(scale):
    """To the last digit, and finite however far the policy has gone."""
    batch = uneven_pairs(spread=scale)
    ours, theirs = BDPO(beta=0.4, lambda_=1.0)(batch).losses, DPO(beta=0.4)(batch).losses
    assert torch.equal(ours, theirs) and ours.isfinite().all()
    assert torch.equal(gradient(ours, batch), gradient(theirs, batch))


@pytest.mark.parametrize("share", [0.5, 0.99])
def test_what_an_unlikely_negative_earns_is_bounded(share):
    """At h(y_l) = -1000 the margin is beta * (h(y_w) - log(1 - lambda)), and the negative is pushed no further."""
    batch = tiny.batch([(POSITIVE, [0.5]), (NEGATIVE, [-1000.0])])
    result = BDPO(beta=1.0, lambda_=share)(batch)
    assert result.metrics["margin"].item() == pytest.approx(0.5 - math.log(1 - share), abs=1e-5)
    found = gradient(result.losses, batch)[:, 0].tolist()
    assert found[0] < -1e-3 and found[1] == 0
