"""TOPR against numbers worked out by hand and a plain loop: the taper has no gradient of its own."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_found, real, uneven_responses, with_behavior, with_token_weights

TOPR = load("topr")


def made(*responses, reward=None):
    """One prompt's responses as (role, log-probs, log-probs under the behaviour policy), equally long."""
    batch = tiny.batch([(role, [0.0] * len(logps)) for role, logps, _ in responses])
    logps = torch.tensor([logps for _, logps, _ in responses], requires_grad=True)
    behavior = torch.tensor([behavior for *_, behavior in responses])
    reward = None if reward is None else torch.tensor(reward)
    return dataclasses.replace(batch, logps=logps, ref_logps=None, behavior_logps=behavior, reward=reward)


def loop(batch, length_normalize: bool = True):
    """The gradient by the formula: -R w a token, over the length, w the taper of bad ones."""
    weights = real(batch, batch.token_weight, 1.0)
    losses, slopes = [], []
    rows = zip(batch.rewards().tolist(), real(batch, batch.logps), real(batch, batch.behavior_logps), strict=True)
    for (reward, logps, others), w in zip(rows, weights, strict=True):
        log_ratio = sum(v * (x - o) for x, o, v in zip(logps, others, w, strict=True))
        taper = min(1.0, math.exp(log_ratio)) if reward < 0 else 1.0
        scale = -reward * taper / (len(logps) if length_normalize else 1)
        losses.append(scale * sum(v * x for x, v in zip(logps, w, strict=True)))
        slopes.append([scale * v for v in w])
    return losses, slopes


def test_values_by_hand():
    """Good: -(-1 - 3) / 2 = 2, slope -1/2 a token, however far from the behaviour policy.

    Bad, log-ratio -3 + 2.7 = -0.3: taper e^-0.3 = 0.7408182, loss 0.7408182 * -3 / 2 = -1.1112273, slope 0.3704091 a
    token: the taper is held fixed. Bad and likelier than when it was written: taper 1, loss -1.5, slope 1/2.
    """
    batch = made(
        (POSITIVE, [-1.0, -3.0], [-0.1, -0.1]),
        (NEGATIVE, [-2.0, -1.0], [-1.5, -1.2]),
        (NEGATIVE, [-2.0, -1.0], [-3.0, -1.2]),
    )
    result = TOPR()(batch)
    slopes = [[-0.5, -0.5], [0.3704091, 0.3704091], [0.5, 0.5]]
    assert_found(result.losses, batch, [2.0, -1.1112273, -1.5], slopes)
    assert result.metrics["taper/positive"].tolist() == [1.0]
    assert result.metrics["taper/negative"].tolist() == pytest.approx([0.7408182, 1.0])


def test_without_lengths_by_hand():
    """Twice the above on two tokens."""
    batch = made((POSITIVE, [-1.0, -3.0], [-0.1, -0.1]), (NEGATIVE, [-2.0, -1.0], [-1.5, -1.2]))
    losses = TOPR(length_normalize=False)(batch).losses
    assert_found(losses, batch, [4.0, -2.2224547], [[-1.0, -1.0], [0.7408182, 0.7408182]])


def test_rewards_tell_good_from_bad():
    """Given rewards count, not roles: 0.5 of a negative is no penalty and no taper, -2 of a positive is both."""
    rows = [(NEGATIVE, [-2.0], [-1.0]), (POSITIVE, [-2.0], [-1.0]), (POSITIVE, [-2.0], [-1.0])]
    batch = made(*rows, reward=[0.5, -2.0, 0.0])
    taper = 0.3678794  # e^-1
    assert_found(TOPR()(batch).losses, batch, [1.0, -4 * taper, 0.0], [[-0.5], [2 * taper], [0.0]])


@pytest.mark.parametrize("length_normalize", [True, False])
@pytest.mark.parametrize("given", [True, False])
def test_equals_a_plain_loop(length_normalize, given):
    batch = with_token_weights(with_behavior(uneven_responses()))
    if given:
        reward = torch.randn(len(batch.role), generator=torch.Generator().manual_seed(1))
        batch = dataclasses.replace(batch, reward=reward)
    objective = TOPR(length_normalize=length_normalize)
    assert objective.has_stop_gradient
    assert_found(objective(batch).losses, batch, *loop(batch, length_normalize))


def test_the_push_ends_where_a_bad_answer_is_unlikely():
    batch = made((NEGATIVE, [-60.0], [-1.0]), (NEGATIVE, [-1e4], [-1.0]))
    assert TOPR()(batch).losses.abs().max() < 1e-20


@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_one_role_may_be_missing(role):
    batch = with_behavior(tiny.batch([(role, [0.1, -0.4])], [(role, [-0.3])]))
    assert_found(TOPR()(batch).losses, batch, *loop(batch))
