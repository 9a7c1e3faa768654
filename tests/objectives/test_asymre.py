"""AsymRE against numbers worked out by hand and a plain loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_found, bare, real, uneven_responses, with_token_weights

AsymRE = load("asymre")


def loop(batch, delta_v: float):
    rewards, prompts, weights = batch.rewards().tolist(), batch.prompt.tolist(), real(batch, batch.token_weight, 1.0)
    losses, slopes = [], []
    for reward, prompt, logps, w in zip(rewards, prompts, real(batch, batch.logps), weights, strict=True):
        group = [other for other, same in zip(rewards, prompts, strict=True) if same == prompt]
        advantage = reward - sum(group) / len(group) - delta_v
        losses.append(-advantage * sum(v * x for x, v in zip(logps, w, strict=True)))
        slopes.append([-advantage * v for v in w])
    return losses, slopes


def test_values_by_hand():
    """Rewards 1, -1, -1 by role, mean -1/3, delta_v -0.1: advantages 4/3 + 0.1 and twice -2/3 + 0.1.

    Sums of log-probs -3, -1 and -2: losses 4.3, -0.5666667 and -1.1333333; slopes are minus the advantages, on each
    token. The second prompt, 1 and -1 about 0: 1.1 and -0.9.
    """
    batch = bare(
        tiny.batch(
            [(POSITIVE, [-1.0, -2.0]), (NEGATIVE, [-1.0]), (NEGATIVE, [-0.5, -1.5])],
            [(NEGATIVE, [-1.0]), (POSITIVE, [-1.0])],
        )
    )
    result = AsymRE()(batch)
    good, bad = 1.4333333, -0.5666667
    slopes = [[-good, -good], [-bad], [-bad, -bad], [0.9], [-1.1]]
    assert_found(result.losses, batch, [4.3, -0.5666667, -1.1333333, -0.9, 1.1], slopes)
    assert result.metrics["advantage/negative"].tolist() == pytest.approx([bad, bad, -0.9])


def test_given_rewards_count():
    """Rewards 2, 0.5 and 0.5, mean 1, delta_v -0.5: advantages 1.5, 0, 0."""
    batch = bare(tiny.batch([(POSITIVE, [-1.0]), (NEGATIVE, [-1.0]), (NEGATIVE, [-2.0])]))
    batch = dataclasses.replace(batch, reward=torch.tensor([2.0, 0.5, 0.5]))
    assert_found(AsymRE(delta_v=-0.5)(batch).losses, batch, [1.5, 0.0, 0.0], [[-1.5], [0.0], [0.0]])


@pytest.mark.parametrize("delta_v", [-0.1, 0.0, 0.7])
@pytest.mark.parametrize("given", [True, False])
def test_equals_a_plain_loop(delta_v, given):
    batch = with_token_weights(bare(uneven_responses(), shift=-3.0))
    if given:
        reward = torch.randn(len(batch.role), generator=torch.Generator().manual_seed(1))
        batch = dataclasses.replace(batch, reward=reward)
    assert_found(AsymRE(delta_v=delta_v)(batch).losses, batch, *loop(batch, delta_v))


def test_at_delta_zero_a_constant_added_to_the_rewards_changes_nothing():
    batch = bare(uneven_responses())
    moved = dataclasses.replace(batch, reward=batch.role + 5.0)
    torch.testing.assert_close(AsymRE(delta_v=0.0)(moved).losses, AsymRE(delta_v=0.0)(batch).losses)


@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_prompts_of_one_role_are_imitated_by_minus_delta(role):
    """r - V is 0, and -delta_v = 0.1 remains, for wrong ones too: the docstring warns."""
    batch = bare(tiny.batch([(role, [-1.0, -2.0]), (role, [-1.0])], [(role, [-4.0])]))
    assert_found(AsymRE()(batch).losses, batch, [0.3, 0.1, 0.4], [[-0.1, -0.1], [-0.1], [-0.1]])
