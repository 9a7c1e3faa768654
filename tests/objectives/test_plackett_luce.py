"""DPO for rankings against numbers worked out by hand, a plain loop, and DPO."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import gradient, log_ratios, uneven_pairs

PlackettLuce, DPO = load("plackett_luce"), load("dpo")


def by_loop(batch, beta):
    """Losses by prompt and the slope along each response's log-ratio."""
    scores, prompts = [beta * h for h in log_ratios(batch)], batch.prompt.tolist()
    ranks = (batch.role if batch.reward is None else batch.reward).tolist()
    losses, slopes = [], [0.0] * len(prompts)
    for prompt in sorted(set(prompts)):
        group, loss = [n for n, which in enumerate(prompts) if which == prompt], 0.0
        for winner in group:
            race = [winner] + [n for n in group if ranks[n] < ranks[winner]]
            total = sum(math.exp(scores[n]) for n in race)
            loss -= math.log(math.exp(scores[winner]) / total)
            for n in race:
                slopes[n] += beta * (math.exp(scores[n]) / total - (n == winner))
        losses.append(loss)
    return losses, slopes


def test_values_by_hand():
    """Scores log 1, log 2 and log 5 (beta 1), ranked second, third, first: 5/8, then 1/3, then alone.

    loss = log 1.6 + log 3 = 0.4700036 + 1.0986123 = 1.5686159.
    Slopes: first 5/8 - 1 = -0.375; second 1/8 + 1/3 - 1 = -0.5416667; third 2/8 + 2/3 = 0.9166667.
    """
    batch = tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [math.log(2)]), (POSITIVE, [math.log(2.5), math.log(2)])])
    batch = dataclasses.replace(batch, reward=torch.tensor([0.3, -7.0, 0.9]))
    losses = PlackettLuce(beta=1.0)(batch).losses
    assert losses.tolist() == pytest.approx([1.5686159], abs=1e-6)
    assert gradient(losses, batch)[batch.mask].tolist() == pytest.approx(
        [-0.5416667, 0.9166667, -0.375, -0.375], abs=1e-6
    )


def test_ties_do_not_compete_by_hand():
    """Without rewards: positives with scores log 1 and log 5, negatives with log 2 and log 3.

    Each positive against both negatives: 1/6 and 5/10, loss log 6 + log 2 = 2.4849066.
    """
    batch = tiny.batch(
        [(POSITIVE, [0.0]), (NEGATIVE, [math.log(2)]), (POSITIVE, [math.log(5)]), (NEGATIVE, [math.log(3)])]
    )
    assert PlackettLuce(beta=1.0)(batch).losses.tolist() == pytest.approx([2.4849066], abs=1e-6)


@pytest.mark.parametrize("rewards", [None, 100, 2])
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_equals_a_plain_loop(beta, rewards):
    """By role, by rewards of which some are equal (2 values), and by rewards that all differ (full rankings)."""
    batch = uneven_pairs()
    if rewards:
        draw = random.Random(1)
        batch = dataclasses.replace(batch, reward=torch.tensor([float(draw.randrange(rewards)) for _ in batch.role]))
    losses = PlackettLuce(beta=beta)(batch).losses
    expected, slopes = by_loop(batch, beta)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, slope, real in zip(gradient(losses, batch).tolist(), slopes, batch.mask.tolist(), strict=True):
        assert found == pytest.approx([slope * token for token in real], rel=1e-4, abs=1e-6)


def test_probabilities_of_all_rankings_sum_to_one():
    """exp(-L) over the 24 orders of four responses, as a full ranking's likelihood must."""
    batch = tiny.batch([(POSITIVE, [0.3]), (POSITIVE, [-1.0]), (NEGATIVE, [0.7]), (NEGATIVE, [2.0])])
    orders = torch.cartesian_prod(*[torch.arange(4.0)] * 4)
    orders = [order for order in orders if len(order.unique()) == 4]
    losses = [PlackettLuce(beta=0.8)(dataclasses.replace(batch, reward=order)).losses.item() for order in orders]
    assert len(losses) == 24 and sum(math.exp(-loss) for loss in losses) == pytest.approx(1, abs=1e-5)


def test_two_responses_are_dpo():
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])], [(NEGATIVE, [1.0]), (POSITIVE, [-1.0])])
    ours, theirs = PlackettLuce(beta=0.4)(batch).losses, DPO(beta=0.4)(batch).losses
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, batch))


@pytest.mark.parametrize("left", [POSITIVE, NEGATIVE])
def test_a_prompt_without_positives_or_without_negatives_is_refused(left):
    batch = tiny.batch([(POSITIVE, [0.1]), (NEGATIVE, [0.2])], [(left, [0.3])])
    with pytest.raises(ValueError, match="no response of role"):
        PlackettLuce()(batch)
