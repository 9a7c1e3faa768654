"""MMPO against numbers worked out by hand, a plain loop, and DPO."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import gradient, log_ratios, sigmoid, uneven_pairs

MMPO, DPO = load("mmpo"), load("dpo")


def rewarded(batch, rewards):
    return dataclasses.replace(batch, reward=torch.tensor(rewards))


def test_values_by_hand():
    """Rewards 3 and 2.5, gamma 2: p = sigmoid(1) = 0.7310586. Log-ratios 1.2 and -0.8, beta 1: z = 2.

    loss = 0.7310586 * log(1 + e^-2) + 0.2689414 * log(1 + e^2) = 0.7310586 * 0.1269280 + 0.2689414 * 2.1269280
         = 0.0927918 + 0.5720191 = 0.6648109; slope sigmoid(2) - p = 0.8807971 - 0.7310586 = 0.1497385: already too far.
    """
    batch = rewarded(tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])]), [3.0, 2.5])
    result = MMPO(beta=1.0, gamma=2.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.6648109], abs=1e-6)
    assert gradient(result.losses, batch)[batch.mask].tolist() == pytest.approx(
        [0.1497385] * 2 + [-0.1497385], abs=1e-6
    )


@pytest.mark.parametrize("beta, gamma", [(0.01, 2.2), (0.8, 0.3), (0.5, 1.1)])
def test_equals_a_plain_loop(beta, gamma):
    """Rewards of a pair that differ, agree, and contradict the roles."""
    batch = uneven_pairs()
    rewards = [0.4 * n - 2 * (n % 3) for n in range(len(batch.role))]
    batch = rewarded(batch, rewards)
    ratios, mask = log_ratios(batch), batch.mask.tolist()
    expected, slopes = [], [0.0] * len(mask)
    for good, bad in batch.pairs.tolist():
        label, z = sigmoid(gamma * (rewards[good] - rewards[bad])), beta * (ratios[good] - ratios[bad])
        expected.append(label * math.log(1 + math.exp(-z)) + (1 - label) * math.log(1 + math.exp(z)))
        slopes[good] += beta * (sigmoid(z) - label)
        slopes[bad] -= beta * (sigmoid(z) - label)
    losses = MMPO(beta=beta, gamma=gamma)(batch).losses
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, slope, real in zip(gradient(losses, batch).tolist(), slopes, mask, strict=True):
        assert found == pytest.approx([slope * token for token in real], rel=1e-4, abs=1e-6)


def test_a_sure_label_is_dpo():
    batch = uneven_pairs()
    batch = rewarded(batch, (100.0 * batch.role).tolist())
    torch.testing.assert_close(MMPO(beta=0.3)(batch).losses, DPO(beta=0.3)(batch).losses)


def test_is_least_where_the_margin_matches_the_reward_gap():
    """gamma 2.2, gap 0.5, beta 0.1: at D = 2.2 * 0.5 / 0.1 = 11 nats."""
    batch = rewarded(tiny.batch([(POSITIVE, [11.0]), (NEGATIVE, [0.0])]), [0.5, 0.0])
    assert gradient(MMPO(beta=0.1)(batch).losses, batch).abs().max().item() == pytest.approx(0, abs=1e-7)
