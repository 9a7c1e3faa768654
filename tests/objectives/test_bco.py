"""BCO against numbers worked out by hand, a plain loop, `bco_pair`, and its shift over three steps."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch, WholeStep, join_step, load
from tests import tiny
from tests.objectives.loops import assert_responses_loop, gradient, in_two_parts, sigmoid, uneven_responses

BCO, BCOPair = load("bco"), load("bco_pair")


def shifted(batch: Batch, shift: float, count: int = 1) -> Batch:
    """The batch in a run whose rewards so far have this mean."""
    return dataclasses.replace(batch, step=WholeStep({}, {}, {"sum": shift * count, "count": count}))


def formula(beta: float, shift: float):
    def response(role: int, ratio: float) -> tuple[float, float]:
        z = role * (beta * ratio - shift)
        return math.log(1 + math.exp(-z)), -role * beta * sigmoid(-z)

    return response


def test_values_by_hand():
    """beta 0.5, log-ratios 3 + 1 = 4 and 0: rewards 2 and 0, the shift is their mean, 1.

    Positive: -log sigmoid(2 - 1) = 0.3132617, slope -0.5 sigmoid(-1) = -0.1344707 on each token.
    Negative: -log sigmoid(-(0 - 1)) = 0.3132617, slope +0.1344707. The shift has no gradient.
    """
    batch = tiny.batch([(POSITIVE, [3.0, 1.0])], [(NEGATIVE, [0.0])])
    result = BCO(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.3132617, 0.3132617], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1344707] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1344707, 0.0], abs=1e-6)
    assert result.metrics["shift"].tolist() == pytest.approx([1.0, 1.0])
    assert result.metrics["reward/positive"].tolist() == pytest.approx([2.0])


@pytest.mark.parametrize("beta, shift", [(0.1, 0.0), (0.8, 0.0), (0.8, -0.6), (1.5, 1.1)])
def test_equals_a_plain_loop(beta, shift):
    assert_responses_loop(BCO(beta=beta), shifted(uneven_responses(), shift), formula(beta, shift))


def test_without_a_step_the_batch_is_the_first_one():
    """Its own mean is the shift: 6 responses to 3 prompts, good and bad, each counting once, whatever its length."""
    batch, beta = uneven_responses(), 0.6
    rewards = [beta * ratio for ratio in batch.log_ratios().tolist()]
    assert_responses_loop(BCO(beta=beta), batch, formula(beta, sum(rewards) / len(rewards)))


# The log-ratios of one-token responses of three steps, and the mean of all so far with beta 1/2:
# (2 + 0 + 4) / 2 / 3 = 1; (6 - 3) / 2 / 4 = 0.375; (3 + 1 - 4) / 2 / 6 = 0. Unequal numbers: no mean of means.
STEPS = [(2.0, 0.0, 4.0), (-3.0,), (1.0, -4.0)]
SHIFTS = [1.0, 0.375, 0.0]


def one_token(ratios, role=NEGATIVE) -> Batch:
    return tiny.batch(*[[(role, [ratio])] for ratio in ratios])


@pytest.mark.parametrize("cuts", [((3,), (1,), (2,)), ((1, 2), (1,), (1, 1)), ((1, 1, 1), (1,), (2,))])
def test_running_mean_over_three_steps(cuts):
    """However the steps are cut into micro-batches; the memory is what a checkpoint holds."""
    objective, memory = BCO(beta=0.5), {}
    for ratios, sizes, shift in zip(STEPS, cuts, SHIFTS, strict=True):
        assert sum(sizes) == len(ratios)
        pieces = torch.tensor(ratios).split(sizes)
        batches = [one_token(piece.tolist()) for piece in pieces]
        steps, memory = join_step(objective, [objective.collect(batch) for batch in batches], dict(memory))
        for batch, step in zip(batches, steps, strict=True):
            result = objective(dataclasses.replace(batch, step=step))
            assert result.metrics["shift"].tolist() == pytest.approx([shift] * len(batch.role), abs=1e-6)
            expected = [math.log(1 + math.exp(0.5 * ratio - shift)) for ratio in batch.log_ratios().tolist()]
            assert result.losses.tolist() == pytest.approx(expected, abs=1e-6)
    assert memory == {"sum": pytest.approx(0.0, abs=1e-6), "count": 6}
    assert objective.coupled and not objective.collect(one_token([1.0]))["rewards"].requires_grad


def test_a_step_that_nobody_collected_changes_nothing():
    """Such as one whose prompts were all left out; the next one adds to what was there."""
    objective = BCO()
    assert objective.remember({}, {}) == {"sum": 0.0, "count": 0}
    assert objective.remember({"sum": 3.0, "count": 2}, {}) == {"sum": 3.0, "count": 2}
    assert objective.remember({"sum": 3.0, "count": 2}, {"rewards": torch.tensor([1.0])}) == {"sum": 4.0, "count": 3}


def test_a_step_in_two_parts_is_the_step():
    batch = uneven_responses()
    whole, parts = BCO()(batch), [BCO()(part) for part in in_two_parts(BCO(), batch, 1)]
    torch.testing.assert_close(torch.cat([part.losses for part in parts]), whole.losses)


def test_without_the_shift_it_is_bco_pair():
    """The two terms of each pair, one positive and one negative a prompt: value and gradient."""
    ratios = [([0.7, -0.2], [1.4]), ([2.0], [-0.5, 0.1, 0.6]), ([-1.1], [0.3])]
    batch = tiny.batch(*[[(POSITIVE, good), (NEGATIVE, bad)] for good, bad in ratios])
    ours, theirs = BCO(beta=0.3)(shifted(batch, 0.0)).losses, BCOPair(beta=0.3)(batch).losses
    assert len(theirs) == 3
    torch.testing.assert_close(ours[batch.pairs].sum(-1), theirs)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, batch))


@pytest.mark.parametrize("counts", [((0, 2), (0, 1)), ((3, 0), (1, 0))])
def test_one_role_alone_is_legal(counts):
    """It then judges the responses against their own mean."""
    batch = uneven_responses(counts=counts)
    shift = 0.1 * batch.log_ratios().mean().item()
    assert_responses_loop(BCO(), batch, formula(0.1, shift))
    assert SAMPLE not in BCO().roles()
