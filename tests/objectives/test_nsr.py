"""NSR, PSR and W-REINFORCE against numbers worked out by hand and a plain loop."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from align.objectives._units import unit_weights
from tests import tiny
from tests.objectives.loops import assert_found, gradient, real, uneven_responses, with_behavior, with_token_weights

NSR = load("nsr")
BELOW, INSIDE, ABOVE = math.log(0.5), math.log(1.1), math.log(2.0)


def loop(batch, positive: float, negative: float, clip: float):
    """The pull on a token is -A r, or 0 where the better for it of r and the clipped r is the clipped one."""
    losses, slopes = [], []
    rows = zip(batch.role.tolist(), real(batch, batch.logps), real(batch, batch.behavior_logps), strict=True)
    for role, logps, others in rows:
        slopes.append([])
        for x, other in zip(logps, others, strict=True):
            r = math.exp(x - other)
            if role == POSITIVE:
                losses.append(-positive * min(r, 1 + clip))
                slopes[-1].append(-positive * r if r < 1 + clip else 0.0)
            else:
                losses.append(negative * max(r, 1 - clip))
                slopes[-1].append(negative * r if r > 1 - clip else 0.0)
    return losses, slopes


def test_values_by_hand():
    """Ratios 1/2, 1.1 and 2, clip 0.2: below, inside and above.

    Right, A = 0.1: -0.1 r up to 1.2, then -0.12 without a gradient. Wrong, A = -1: r from 0.8 on, below that 0.8
    without a gradient. The gradient along log p is r times that along r.
    """
    batch = with_behavior(tiny.batch([(POSITIVE, [BELOW, INSIDE, ABOVE]), (NEGATIVE, [BELOW, INSIDE, ABOVE])]))
    result = NSR()(batch)
    losses, slopes = [-0.05, -0.11, -0.12, 0.8, 1.1, 2.0], [[-0.05, -0.11, 0.0], [0.0, 1.1, 2.0]]
    assert_found(result.losses, batch, losses, slopes)
    assert result.metrics["clipped"].tolist() == [0, 0, 1, 1, 0, 0]
    assert result.metrics["ratio"].tolist() == pytest.approx([0.5, 1.1, 2.0] * 2, rel=1e-5)


@pytest.mark.parametrize("positive, negative, clip", [(0.1, 1.0, 0.2), (1.0, 0.5, 0.6), (0.0, 2.0, 0.05)])
def test_equals_a_plain_loop(positive, negative, clip):
    batch = with_behavior(uneven_responses())
    objective = NSR(positive_weight=positive, negative_weight=negative, clip=clip)
    assert_found(objective(batch).losses, batch, *loop(batch, positive, negative, clip))


def test_nsr_is_w_reinforce_with_positive_weight_zero():
    """Right roll-outs have neither loss nor gradient, wrong ones what they have in W-REINFORCE; PSR the other way."""
    batch = with_behavior(uneven_responses())
    wrong = (batch.role == NEGATIVE)[:, None].expand(batch.mask.shape)
    both = NSR()(batch).losses
    for part, dropped in ((NSR(positive_weight=0.0), ~wrong), (NSR(negative_weight=0.0), wrong)):
        losses = part(batch).losses
        torch.testing.assert_close(losses, torch.where(dropped[batch.mask], 0.0, both))
        torch.testing.assert_close(gradient(losses, batch), torch.where(dropped, 0.0, gradient(both, batch)))


def test_on_policy_it_is_reinforce():
    """At r = 1 the gradient is -A on every token: that of -A log p."""
    batch = with_behavior(tiny.batch([(POSITIVE, [0.0, 0.0]), (NEGATIVE, [0.0])]))
    assert_found(NSR()(batch).losses, batch, [-0.1, -0.1, 1.0], [[-0.1, -0.1], [1.0]])


@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_one_role_may_be_missing(role):
    batch = with_behavior(tiny.batch([(role, [0.1, -0.1])], [(role, [BELOW])]))
    assert_found(NSR()(batch).losses, batch, *loop(batch, 0.1, 1.0, 0.2))


def test_token_weights_are_weights_of_its_units():
    """A token is a unit: the trainer multiplies its loss with its weight, the objective must not do so again."""
    batch = with_behavior(uneven_responses())
    weighted = with_token_weights(batch)
    torch.testing.assert_close(NSR()(weighted).losses, NSR()(batch).losses)
    torch.testing.assert_close(unit_weights(weighted, "token"), weighted.token_weight[batch.mask])


def test_the_ratio_is_not_taken_above_e_to_the_10():
    batch = with_behavior(tiny.batch([(NEGATIVE, [0.0])]))
    batch = dataclasses.replace(batch, behavior_logps=batch.logps.detach() - 50)
    assert_found(NSR()(batch).losses, batch, [math.exp(10)], [[0.0]])


def test_the_entropy_bonus_is_taken_off_each_token():
    """Their code: loss - 0.001 H at each token, with H's gradient."""
    batch = with_behavior(uneven_responses())
    entropies = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    batch = dataclasses.replace(batch, extras={"entropy": entropies})
    plain, objective = NSR()(batch), NSR(entropy_weight=0.25)
    result = objective(batch)
    torch.testing.assert_close(result.losses, plain.losses - 0.25 * entropies[batch.mask])
    (slope,) = torch.autograd.grad(result.losses.sum(), entropies)
    torch.testing.assert_close(slope, torch.where(batch.mask, -0.25, 0.0))
    assert objective.extras == ("entropy",) and not NSR().extras
    assert torch.equal(result.metrics["entropy"], entropies[batch.mask].detach())
