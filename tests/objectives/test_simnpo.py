"""SimNPO against numbers worked out by hand, a plain loop, NPO, and gradient ascent on means."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, load
from tests import tiny
from tests.objectives.loops import assert_responses_loop, bare, gradient, sigmoid, uneven_responses

SimNPO, NPO = load("simnpo"), load("npo")


def negatives(*logps: list[float]):
    """One prompt whose negatives have tokens of these log-probs."""
    return bare(tiny.batch([(NEGATIVE, tokens) for tokens in logps]))


def test_values_by_hand():
    """beta 2, gamma 0.5. Mean (-0.1 - 0.3) / 2 = -0.2: z = -2 * (-0.2 + 0.5) = -0.6, -log sigmoid(z) = 1.0374880.

    Slope along the mean: 2 sigmoid(0.6) = 1.2913126, half of it on each of the two tokens.
    Mean -2: z = -2 * (-1.5) = 3, loss 0.0485874, slope 2 sigmoid(-3) = 0.0948517. (2 / beta is 1.)
    """
    batch = negatives([-0.1, -0.3], [-2.0])
    result = SimNPO(beta=2.0, gamma=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([1.0374880, 0.0485874], abs=1e-6)
    assert result.metrics["negative_weight"].tolist() == pytest.approx([1.2913126, 0.0948517], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([0.6456563] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.0948517, 0.0], abs=1e-6)


def test_push_is_that_of_gradient_ascent_at_the_margin():
    """At a mean of -gamma the loss is 2 log 2 / beta, and the slope along the mean is 1; below it is less."""
    batch = negatives([-0.7, -0.7], [-0.7 - 0.3])
    result = SimNPO(beta=4.0, gamma=0.7)(batch)
    assert result.losses[0].item() == pytest.approx(2 * math.log(2) / 4, abs=1e-6)
    assert result.metrics["negative_weight"].tolist() == pytest.approx([1.0, 2 * sigmoid(-1.2)], abs=1e-6)


@pytest.mark.parametrize("beta, gamma", [(4.5, 0.0), (0.7, 0.4)])
def test_equals_a_plain_loop(beta, gamma):
    def formula(role: int, mean: float) -> tuple[float, float]:
        return 2 / beta * math.log(1 + math.exp(beta * (mean + gamma))), 2 * sigmoid(beta * (mean + gamma))

    batch = bare(uneven_responses(), shift=-1.0)
    assert_responses_loop(SimNPO(beta=beta, gamma=gamma), batch, formula, per_token=True, only=NEGATIVE)


def test_reads_no_reference():
    batch = bare(uneven_responses(), shift=-1.0)
    without = SimNPO()(dataclasses.replace(batch, ref_logps=None)).losses
    assert torch.equal(without, SimNPO()(batch).losses)
    assert "reference" not in SimNPO.needs


def test_one_token_and_a_certain_reference_is_npo():
    """With one token the mean is the sum; a reference of probability 1 leaves the log-prob as the log-ratio."""
    batch = negatives([-0.4], [-2.5], [-0.01])
    torch.testing.assert_close(SimNPO(beta=1.3)(batch).losses, NPO(beta=1.3)(batch).losses)


def test_length_does_not_matter():
    """Ten tokens alike are pushed as one is, each by a tenth; NPO would push each as if it were alone."""
    batch = negatives([-0.5] * 10, [-0.5])
    losses = SimNPO()(batch).losses
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    found = gradient(losses, batch)
    assert found[0].tolist() == pytest.approx([found[1, 0].item() / 10] * 10, rel=1e-5)


def test_beta_to_zero_is_gradient_ascent_on_the_means():
    batch = bare(uneven_responses(counts=((0, 2), (0, 3))), shift=-1.0)
    found = gradient(SimNPO(beta=1e-5)(batch).losses, batch)
    torch.testing.assert_close(found, gradient(batch.means(), batch), rtol=1e-3, atol=1e-5)


def test_impossible_negatives_are_left_alone():
    batch = negatives([-1e4, -1e4], [-1e4])
    losses = SimNPO()(batch).losses
    assert losses.tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert gradient(losses, batch).abs().max().item() == 0
