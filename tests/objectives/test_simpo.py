"""SimPO against numbers worked out by hand and a plain loop (TRL is asked in test_trl_cpo_parity.py)."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_bare_loop, bare, gradient, sigmoid

SimPO = load("simpo")


def test_values_by_hand():
    """Log-probs -0.5 - 0.7 (mean -0.6) and -1.0 - 1.2 - 1.7 (mean -1.3), beta 2, gamma 1: z = 2 * 0.7 - 1 = 0.4.

    loss = log(1 + e^-0.4) = 0.5130153. sigmoid(-0.4) = 0.4013123; times beta 0.8026247, of which each of the positive's
    two tokens gets half, 0.4013123, and each of the negative's three a third, 0.2675416.
    The logged margin is beta times the difference, 1.4, whatever gamma is.
    """
    batch = bare(tiny.batch([(POSITIVE, [-0.5, -0.7]), (NEGATIVE, [-1.0, -1.2, -1.7])]))
    result = SimPO(beta=2.0, gamma=1.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.5130153], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.4], abs=1e-6)
    assert result.metrics["accuracy"].tolist() == [1.0]
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.4013123, -0.4013123, 0], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.2675416] * 3, abs=1e-6)


def test_label_smoothing_by_hand():
    """e = 0.2 at z = 0.4: 0.8 * 0.5130153 + 0.2 * 0.9130153 = 0.5930153; slope (0.2 - 0.4013123) * 2 = -0.4026247."""
    batch = bare(tiny.batch([(POSITIVE, [-0.6]), (NEGATIVE, [-1.3])]))
    losses = SimPO(beta=2.0, gamma=1.0, label_smoothing=0.2)(batch).losses
    assert losses.tolist() == pytest.approx([0.5930153], abs=1e-6)
    assert gradient(losses, batch)[:, 0].tolist() == pytest.approx([-0.4026247, 0.4026247], abs=1e-6)


@pytest.mark.parametrize("beta, gamma, smoothing", [(2.0, 1.0, 0.0), (10.0, 0.0, 0.0), (0.7, 2.0, 0.3)])
def test_equals_a_plain_loop(beta, gamma, smoothing):
    def formula(positive, negative):
        z = beta * (positive - negative) - gamma
        slope = beta * (smoothing - sigmoid(-z))
        return (1 - smoothing) * math.log(1 + math.exp(-z)) + smoothing * math.log(1 + math.exp(z)), slope, -slope

    assert_bare_loop(SimPO(beta=beta, gamma=gamma, label_smoothing=smoothing), formula, per_token=True)


def test_length_does_not_matter():
    """A response said twice over has the same mean, so the same loss."""
    once = bare(tiny.batch([(POSITIVE, [-0.5, -0.7]), (NEGATIVE, [-1.0])]))
    twice = bare(tiny.batch([(POSITIVE, [-0.5, -0.7] * 2), (NEGATIVE, [-1.0] * 4)]))
    torch.testing.assert_close(SimPO()(once).losses, SimPO()(twice).losses)
