"""CRINGE against numbers worked out by hand, a plain loop, and unlikelihood."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_found, bare, gradient, real, sigmoid, uneven_pairs, with_token_weights

CRINGE = load("cringe")
HALF, QUARTER, MOST = math.log(1 / 2), math.log(1 / 4), math.log(3 / 4)


def loop(batch, alpha: float):
    weights, drawn = real(batch, batch.token_weight, 1.0), real(batch, batch.extras["alternatives"])
    losses, slopes = [], []
    for role, logps, w, others in zip(batch.role.tolist(), real(batch, batch.logps), weights, drawn, strict=True):
        loss, slope = 0.0, []
        for x, weight, other in zip(logps, w, others, strict=True):
            loss += weight * (-x if role == POSITIVE else alpha * math.log(1 + math.exp(x - other)))
            slope.append(weight * (-1 if role == POSITIVE else alpha * sigmoid(x - other)) / len(logps))
        losses.append(loss / len(logps))
        slopes.append(slope)
    return losses, slopes


def test_values_by_hand():
    """Good p = 1/2, 1/4: (log 2 + log 4) / 2 = 1.0397208, slope -1/2 a token.

    Bad p = 1/2 and 1/4, drawn instead 1/4 and 3/4, alpha 2: log(1 + 2) = 1.0986123 and log(1 + 1/3) = 0.2876821, mean
    0.6931472, doubled 1.3862944. Slopes sigmoid: 2/3 and 1/4, doubled and halved; the drawn ones rise as much.
    """
    batch = bare(tiny.batch([(POSITIVE, [HALF, QUARTER]), (NEGATIVE, [HALF, QUARTER])]))
    drawn = torch.tensor([[-7.0, -7.0], [QUARTER, MOST]], requires_grad=True)
    result = CRINGE(alpha=2.0)(dataclasses.replace(batch, extras={"alternatives": drawn}))
    assert_found(result.losses, batch, [1.0397208, 1.3862944], [[-0.5, -0.5], [2 / 3, 1 / 4]])
    assert result.metrics["contrast/negative"].tolist() == pytest.approx([0.6931472])
    rising = torch.autograd.grad(result.losses.sum(), drawn)[0]
    torch.testing.assert_close(rising, torch.tensor([[0.0, 0.0], [-2 / 3, -1 / 4]]))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 5.0])
def test_equals_a_plain_loop(alpha):
    batch = with_token_weights(bare(uneven_pairs(), shift=-4.0))
    batch = dataclasses.replace(batch, extras={"alternatives": -4 * torch.rand(batch.mask.shape)})
    assert_found(CRINGE(alpha=alpha)(batch).losses, batch, *loop(batch, alpha))


def test_asks_for_alternatives():
    assert CRINGE().extras == ("alternatives",)


def test_without_alternatives_it_is_unlikelihood():
    """log(1 + p / (1 - p)) = -log(1 - p), positives are imitated by both."""
    batch = with_token_weights(bare(uneven_pairs(), shift=-4.0))
    assert not batch.extras
    losses, expected = CRINGE(alpha=0.6)(batch).losses, load("unlikelihood")(alpha=0.6)(batch).losses
    torch.testing.assert_close(losses, expected)
    torch.testing.assert_close(gradient(losses, batch), gradient(expected, batch))


def test_differences_of_logits_are_those_of_log_probs():
    """With logits 1.5 of the bad token and 2.5 of the drawn one: log(1 + e^-1) = 0.3132617.

    Slopes along the logits: 0.2689414 on the bad one, minus that on the drawn one, nothing on the third.
    """
    logits = torch.tensor([[[2.5, 1.5, -0.3]]], requires_grad=True)
    logps = logits.log_softmax(-1)
    batch = dataclasses.replace(tiny.batch([(NEGATIVE, [0.0])]), logps=logps[..., 1])
    losses = CRINGE()(dataclasses.replace(batch, extras={"alternatives": logps[..., 0]})).losses
    assert losses.item() == pytest.approx(0.3132617, abs=1e-6)
    found = torch.autograd.grad(losses.sum(), logits)[0].flatten().tolist()
    assert found == pytest.approx([-0.2689414, 0.2689414, 0.0], abs=1e-6)


@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_one_role_may_be_missing(role):
    batch = bare(tiny.batch([(role, [HALF, QUARTER])], [(role, [MOST])]))
    batch = dataclasses.replace(batch, extras={"alternatives": torch.full((2, 2), -1.0)})
    result = CRINGE()(batch)
    assert_found(result.losses, batch, *loop(batch, 1.0))
    assert len(result.metrics["contrast/negative"]) == (2 if role == NEGATIVE else 0)
