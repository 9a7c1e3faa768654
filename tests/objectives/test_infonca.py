"""InfoNCA against numbers worked out by hand, a plain loop, and DPO."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import gradient, log_ratios, uneven_pairs

InfoNCA, DPO = load("infonca"), load("dpo")


def by_loop(batch, beta, alpha):
    """Losses by prompt and the slope along each response's log-ratio."""
    scores, roles, prompts = [beta * h for h in log_ratios(batch)], batch.role.tolist(), batch.prompt.tolist()
    losses, slopes = [], [0.0] * len(roles)
    for prompt in sorted(set(prompts)):
        group = [n for n, which in enumerate(prompts) if which == prompt]
        if batch.reward is None:
            heights = {n: float(roles[n] == POSITIVE) for n in group}
        else:
            heights = {n: math.exp(batch.reward[n].item() / alpha) for n in group}
        total = sum(math.exp(scores[n]) for n in group)
        target = {n: heights[n] / sum(heights.values()) for n in group}
        losses.append(-sum(target[n] * math.log(math.exp(scores[n]) / total) for n in group))
        for n in group:
            slopes[n] = beta * (math.exp(scores[n]) / total - target[n])
    return losses, slopes


def test_values_by_hand():
    """Scores log 1, log 2 and log 5 (beta 1) of 8 in all, targets softmax(log 4, log 1, log 3) = 1/2, 1/8, 3/8.

    loss = 1/2 log 8 + 1/8 log 4 + 3/8 log 1.6 = 1.0397208 + 0.1732868 + 0.1762514 = 1.3892590.
    Slopes 1/8 - 1/2, 2/8 - 1/8, 5/8 - 3/8. Rewards twice as high at alpha 2 are the same.
    """
    batch = tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [math.log(2)]), (POSITIVE, [math.log(2.5), math.log(2)])])
    batch = dataclasses.replace(batch, reward=2 * torch.tensor([4.0, 1.0, 3.0]).log())
    losses = InfoNCA(beta=1.0, alpha=2.0)(batch).losses
    assert losses.tolist() == pytest.approx([1.3892590], abs=1e-6)
    assert gradient(losses, batch)[batch.mask].tolist() == pytest.approx([-0.375, 0.125, 0.25, 0.25], abs=1e-6)


def test_without_rewards_the_positives_share_the_target_by_hand():
    """Scores log 1, log 2, log 5 as above: 1/2 log 8 + 1/2 log 1.6 = 1.2747230."""
    batch = tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [math.log(2)]), (POSITIVE, [math.log(5)])])
    result = InfoNCA(beta=1.0)(batch)
    assert result.losses.tolist() == pytest.approx([1.2747230], abs=1e-6)
    assert gradient(result.losses, batch)[:, 0].tolist() == pytest.approx([-0.375, 0.25, 0.125], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([math.log(5) / 2 - math.log(2)], abs=1e-6)


@pytest.mark.parametrize("rewards", [False, True])
@pytest.mark.parametrize("beta, alpha", [(0.1, 1.0), (1.0, 0.2), (0.5, 3.0)])
def test_equals_a_plain_loop(beta, alpha, rewards):
    batch = uneven_pairs()
    if rewards:
        draw = random.Random(1)
        batch = dataclasses.replace(batch, reward=torch.tensor([draw.gauss(0, 1) for _ in batch.role]))
    losses = InfoNCA(beta=beta, alpha=alpha)(batch).losses
    expected, slopes = by_loop(batch, beta, alpha)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, slope, real in zip(gradient(losses, batch).tolist(), slopes, batch.mask.tolist(), strict=True):
        assert found == pytest.approx([slope * token for token in real], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("best", [None, 1e4])
def test_a_pair_is_dpo(best):
    """Without rewards, or with a temperature near 0 beside the gap between them."""
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])], [(NEGATIVE, [1.0]), (POSITIVE, [-1.0])])
    rewarded = batch if best is None else dataclasses.replace(batch, reward=best * batch.role)
    ours, theirs = InfoNCA(beta=0.4)(rewarded).losses, DPO(beta=0.4)(batch).losses
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, batch))


def test_a_small_temperature_asks_for_the_best_alone():
    """Rewards 1, 2, -1 at alpha 1e-4: the target is the second, -log(2/8) = 1.3862944; large quotients are no harm."""
    batch = tiny.batch([(POSITIVE, [0.0]), (POSITIVE, [math.log(2)]), (NEGATIVE, [math.log(5)])])
    batch = dataclasses.replace(batch, reward=torch.tensor([1.0, 2.0, -1.0]))
    assert InfoNCA(beta=1.0, alpha=1e-4)(batch).losses.item() == pytest.approx(1.3862944, abs=1e-6)


@pytest.mark.parametrize("left", [POSITIVE, NEGATIVE])
def test_a_prompt_without_positives_or_without_negatives_is_refused(left):
    batch = tiny.batch([(POSITIVE, [0.1]), (NEGATIVE, [0.2])], [(left, [0.3])])
    with pytest.raises(ValueError, match="no response of role"):
        InfoNCA()(batch)
