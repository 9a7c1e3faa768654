"""NPO against numbers worked out by hand, a plain loop, DPO without its positive, and gradient ascent."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_responses_loop, gradient, sigmoid, uneven_responses

NPO, DPO = load("npo"), load("dpo")


def formula(beta: float):
    return lambda role, h: (2 / beta * math.log(1 + math.exp(beta * h)), 2 * sigmoid(beta * h))


def test_values_by_hand():
    """beta 0.5. Log-ratio 1.5 + 0.5 = 2: 4 log(1 + e) = 5.2530467, slope 2 sigmoid(1) = 1.4621172 on each token.

    Log-ratio -2: 4 log(1 + e^-1) = 1.2530467, slope 2 sigmoid(-1) = 0.5378828.
    """
    batch = tiny.batch([(NEGATIVE, [1.5, 0.5]), (NEGATIVE, [-2.0])])
    result = NPO(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([5.2530467, 1.2530467], abs=1e-5)
    assert result.metrics["negative_weight"].tolist() == pytest.approx([1.4621172, 0.5378828], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([1.4621172] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.5378828, 0.0], abs=1e-6)


def test_untrained_policy_by_hand():
    """Log-ratio 0, beta 0.1: 20 log 2 = 13.8629436; the push is that of gradient ascent, 1."""
    batch = tiny.batch([(NEGATIVE, [0.0, 0.0, 0.0])])
    result = NPO()(batch)
    assert result.losses.tolist() == pytest.approx([13.8629436], abs=1e-5)
    assert gradient(result.losses, batch).tolist() == [pytest.approx([1.0] * 3)]


@pytest.mark.parametrize(
    "ratio, beta, push", [(0.1, 1, 0.182), (0.1, 0.1, 0.885), (0.01, 1, 0.020), (0.01, 0.1, 0.774)]
)
def test_published_pushes(ratio, beta, push):
    """2 p^beta / (p^beta + p_ref^beta), for p / p_ref = ratio: 2 * 0.1 / 1.1 = 0.1818 is the first."""
    batch = tiny.batch([(NEGATIVE, [math.log(ratio)])])
    result = NPO(beta=beta)(batch)
    assert 2 * ratio**beta / (ratio**beta + 1) == pytest.approx(push, abs=5e-4)
    assert result.metrics["negative_weight"].item() == pytest.approx(push, abs=5e-4)
    assert gradient(result.losses, batch).item() == pytest.approx(push, abs=5e-4)


@pytest.mark.parametrize("beta", [0.1, 1.2])
def test_equals_a_plain_loop(beta):
    """On the negatives only, in their order; positives of the batch have neither loss nor gradient."""
    assert_responses_loop(NPO(beta=beta), uneven_responses(), formula(beta), only=NEGATIVE)


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_is_dpo_without_its_positive(beta):
    """(2 / beta) times DPO where the log-ratio of every positive is 0, one positive a prompt."""
    negatives = [(NEGATIVE, [0.7, -1.0]), (NEGATIVE, [2.0]), (NEGATIVE, [-3.0, 0.2, 0.1])]
    batch = tiny.batch(*[[(POSITIVE, [0.0, 0.0]), negative] for negative in negatives])
    ours, theirs = NPO(beta=beta)(batch).losses, 2 / beta * DPO(beta=beta)(batch).losses
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    of_negatives = batch.role == NEGATIVE
    torch.testing.assert_close(gradient(ours, batch)[of_negatives], gradient(theirs, batch)[of_negatives])


def test_beta_to_zero_is_gradient_ascent():
    """The gradient tends to that of the negatives' log-prob, 1 a token; at beta b it is 1 + b h / 2 + O(b^3)."""
    batch = uneven_responses(counts=((0, 2), (0, 3)))
    ascent = gradient(batch.sums(), batch)
    assert torch.equal(ascent, batch.mask.float())
    away = [(gradient(NPO(beta=b)(batch).losses, batch) - ascent).abs().max().item() for b in (1e-1, 1e-2, 1e-5)]
    assert away[0] == pytest.approx(10 * away[1], rel=0.02) and away[1] > 1e-3
    assert away[2] < 1e-4


def test_far_negatives_fade_and_near_ones_do_not():
    """A log-ratio of -1e4 has no pull left, one of +1e4 pulls with 2; both losses are finite: 0 and 2 h."""
    batch = tiny.batch([(NEGATIVE, [-1e4]), (NEGATIVE, [1e4])])
    losses = NPO(beta=1.0)(batch).losses
    assert losses.tolist() == pytest.approx([0.0, 2e4], rel=1e-4)
    assert gradient(losses, batch)[:, 0].tolist() == pytest.approx([0.0, 2.0], abs=1e-6)


def test_weights_of_tokens_enter_the_log_ratio():
    """Tokens weighed 2 and 0.5: 2 * 1.5 + 0.5 * 0.5 = 3.25; beta 1: 2 log(1 + e^3.25)."""
    batch = tiny.batch([(NEGATIVE, [1.5, 0.5])])
    batch = dataclasses.replace(batch, token_weight=torch.tensor([[2.0, 0.5]]))
    assert NPO(beta=1.0)(batch).losses.item() == pytest.approx(2 * math.log(1 + math.exp(3.25)), rel=1e-5)
