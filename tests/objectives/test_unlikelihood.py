"""Unlikelihood against numbers worked out by hand and a plain loop."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_found, bare, real, uneven_pairs, with_token_weights

Unlikelihood = load("unlikelihood")
HALF, QUARTER, MOST = math.log(1 / 2), math.log(1 / 4), math.log(3 / 4)


def loop(batch, alpha: float, level: str = "sequence"):
    weights, repeats = real(batch, batch.token_weight, 1.0), real(batch, batch.extras.get("repeats"))
    losses, slopes = [], []
    for role, logps, w, r in zip(batch.role.tolist(), real(batch, batch.logps), weights, repeats, strict=True):
        loss, slope = 0.0, []
        for x, weight, others in zip(logps, w, r, strict=True):
            if role == POSITIVE:
                loss += weight * (-x + (alpha * others if level == "token" else 0))
                slope.append(-weight / len(logps))
            else:
                loss += -alpha * weight * math.log(1 - math.exp(x))
                slope.append(alpha * weight * math.exp(x) / (1 - math.exp(x)) / len(logps))
        losses.append(loss / len(logps))
        slopes.append(slope)
    return losses, slopes


def test_values_by_hand():
    """Good p = 1/2, 1/4: (log 2 + log 4) / 2 = 1.0397208, slope -1/2 a token.

    Bad p = 1/2, 3/4, alpha 2: 2 * (log 2 + log 4) / 2 = 2.0794415; slope 2 * p / (1 - p) / 2, so 1 and 3.
    """
    batch = bare(tiny.batch([(POSITIVE, [HALF, QUARTER]), (NEGATIVE, [HALF, MOST])]))
    result = Unlikelihood(alpha=2.0)(batch)
    assert_found(result.losses, batch, [1.0397208, 2.0794415], [[-0.5, -0.5], [1.0, 3.0]])
    assert result.metrics["unlikelihood/negative"].tolist() == pytest.approx([1.0397208])


def test_push_fades_with_the_probability():
    """Along the logit of the bad token the slope is p itself: p / (1 - p) along log p, times 1 - p."""
    logits = torch.tensor([[[0.3, -1.0, 2.0]], [[0.3, -9.0, 2.0]]], requires_grad=True)
    logps = logits.log_softmax(-1)[..., 1]
    batch = dataclasses.replace(tiny.batch([(NEGATIVE, [0.0]), (NEGATIVE, [0.0])]), logps=logps)
    found = torch.autograd.grad(Unlikelihood()(batch).losses.sum(), logits)[0][:, 0, 1]
    torch.testing.assert_close(found, logps.detach().exp()[:, 0])


def test_token_level_by_hand():
    """Given sums of 0.3 and 0.5 over the earlier tokens, alpha 2: 1.0397208 + 2 * 0.4 = 1.8397208.

    What is given for the bad answer, 9, is not read: 2 * log 2 as at the level of sequences. The sums have a gradient:
    2 / 2 a token.
    """
    batch = bare(tiny.batch([(POSITIVE, [HALF, QUARTER]), (NEGATIVE, [HALF])]))
    repeats = torch.tensor([[0.3, 0.5], [9.0, 9.0]], requires_grad=True)
    batch = dataclasses.replace(batch, extras={"repeats": repeats})
    objective = Unlikelihood(alpha=2.0, level="token")
    assert objective.extras == ("repeats",) and not Unlikelihood().extras
    losses = objective(batch).losses
    assert_found(losses, batch, [1.8397208, 1.3862944], [[-0.5, -0.5], [2.0]])
    assert torch.autograd.grad(losses.sum(), repeats)[0].tolist() == [[1.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize("alpha", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("level", ["sequence", "token"])
def test_equals_a_plain_loop(alpha, level):
    batch = with_token_weights(bare(uneven_pairs(), shift=-4.0))
    batch = dataclasses.replace(batch, extras={"repeats": torch.rand(batch.mask.shape)})
    assert_found(Unlikelihood(alpha=alpha, level=level)(batch).losses, batch, *loop(batch, alpha, level))


@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_one_role_may_be_missing(role):
    batch = bare(tiny.batch([(role, [HALF, QUARTER])], [(role, [MOST])]))
    result = Unlikelihood()(batch)
    assert_found(result.losses, batch, *loop(batch, 1.0))
    assert len(result.metrics["unlikelihood/positive"]) == (2 if role == POSITIVE else 0)


def test_a_certain_token_is_pushed_down_with_a_finite_loss():
    """log p is not taken above -1e-6: 13.8155106 there, without a gradient. At -1e-3 the slope is 1 / (e^0.001 - 1)."""
    logps = torch.tensor([[0.0], [-1e-3]], requires_grad=True)
    batch = dataclasses.replace(tiny.batch([(NEGATIVE, [0.0]), (NEGATIVE, [0.0])]), logps=logps)
    assert_found(Unlikelihood()(batch).losses, batch, [13.8155106, 6.9082554], [[0.0], [999.5000833]])
