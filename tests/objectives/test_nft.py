"""NFT against numbers worked out by hand and a plain loop: the floor passes the gradient straight through."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from align.objectives._units import unit_weights
from tests import tiny
from tests.objectives.loops import assert_found, gradient, real, uneven_pairs, with_behavior, with_token_weights

NFT = load("nft")
DOUBLE, HALF = math.log(2.0), math.log(0.5)


def loop(batch, epsilon: float, weight: float):
    """Slopes by the formula: 1 - q up on right ones; w (1 - q) times q R / (1 - q) over the floored ratio on wrong."""
    roles, prompts = batch.role.tolist(), batch.prompt.tolist()
    losses, slopes = [], []
    rows = zip(roles, prompts, real(batch, batch.logps), real(batch, batch.behavior_logps), strict=True)
    for role, prompt, logps, others in rows:
        group = [other for other, same in zip(roles, prompts, strict=True) if same == prompt]
        q = min(max(group.count(POSITIVE) / len(group), 0.02), 0.98)
        slopes.append([])
        for x, other in zip(logps, others, strict=True):
            r = math.exp(x - other)
            floored = max((1 - q * r) / (1 - q), epsilon)
            right = role == POSITIVE
            losses.append((1 - q) * (-(x - other) if right else -weight * math.log(floored)))
            slopes[-1].append(-(1 - q) if right else weight * (1 - q) * (q * r / (1 - q)) / floored)
    return losses, slopes


def one_in_four(*wrong: float):
    """A right roll-out of ratio 2 and three wrong ones: q = 1/4."""
    return with_behavior(tiny.batch([(POSITIVE, [DOUBLE]), *[(NEGATIVE, [x]) for x in wrong]]))


def test_values_by_hand():
    """q = 1/4, floor 1. Right, R = 2: -0.75 log 2 = -0.5198604, slope -0.75.

    Wrong: R = 2: (1 - 1/2) / 0.75 = 2/3, floored to 1: loss 0, but the slope is 0.25 * 2 / 1 = 0.5.
    R = 1/2: (1 - 1/8) / 0.75 = 7/6: -0.75 log(7/6) = -0.1156130, slope 0.125 / (7/6) = 0.1071429. R = 1: 0, 0.25.
    """
    batch = one_in_four(DOUBLE, HALF, 0.0)
    result = NFT()(batch)
    assert_found(result.losses, batch, [-0.5198604, 0.0, -0.1156130, 0.0], [[-0.75], [0.5], [0.1071429], [0.25]])
    assert result.metrics["ratio"].tolist() == pytest.approx([2.0, 2.0, 0.5, 1.0], rel=1e-5)


def test_a_lower_floor_by_hand():
    """Floor 1/2, so 2/3 stands: -0.75 log(2/3) = 0.3040988, slope 0.5 / (2/3) = 0.75.

    R = 3.6: 0.1 / 0.75 = 0.1333 is floored: -0.75 log(1/2) = 0.5198604, slope 0.25 * 3.6 / 0.5 = 1.8.
    """
    batch = one_in_four(DOUBLE, math.log(3.6), 0.0)
    losses = NFT(epsilon=0.5)(batch).losses
    assert_found(losses, batch, [-0.5198604, 0.3040988, 0.5198604, 0.0], [[-0.75], [0.75], [1.8], [0.25]])


@pytest.mark.parametrize("epsilon, weight", [(1.0, 1.0), (0.3, 0.4), (1e-3, 2.0)])
def test_equals_a_plain_loop(epsilon, weight):
    batch = with_behavior(uneven_pairs())
    objective = NFT(epsilon=epsilon, negative_weight=weight)
    assert objective.has_stop_gradient
    assert_found(objective(batch).losses, batch, *loop(batch, epsilon, weight))


def test_above_the_floor_it_is_the_derivative():
    """With all implied ratios above epsilon nothing is stopped: slopes are differences of losses."""
    batch = with_behavior(tiny.batch([(POSITIVE, [0.3, -0.2]), (NEGATIVE, [0.1, -0.4]), (NEGATIVE, [-0.6])]))
    batch = dataclasses.replace(
        batch, logps=batch.logps.detach().double().requires_grad_(), behavior_logps=batch.behavior_logps.double()
    )
    objective = NFT(epsilon=0.01)
    assert torch.autograd.gradcheck(lambda x: objective(dataclasses.replace(batch, logps=x)).losses, batch.logps)


@pytest.mark.parametrize("wrong, push", [(3, 0.25), (15, 0.0625), (99, 0.02)])
def test_the_push_on_wrong_ones_goes_with_q(wrong, push):
    """On policy (R = 1) a wrong token is pushed by w q / 1: nothing as q -> 0, so far as q is not taken below 0.02."""
    batch = with_behavior(tiny.batch([(POSITIVE, [0.0]), *[(NEGATIVE, [0.0])] * wrong]))
    assert_found(NFT()(batch).losses, batch, [0.0] * (wrong + 1), [[push - 1], *[[push]] * wrong])


def test_easy_prompts_count_little():
    """99 of 100 right: q is taken to be 0.98, so right ones are pulled by 0.02; the wrong one is pushed by 0.98."""
    batch = with_behavior(tiny.batch([(NEGATIVE, [0.0]), *[(POSITIVE, [0.0])] * 99]))
    assert gradient(NFT()(batch).losses, batch)[:2, 0].tolist() == pytest.approx([0.98, -0.02], abs=1e-6)


def test_negative_weight_zero_is_fine_tuning_on_the_right_ones():
    batch = with_behavior(uneven_pairs())
    losses = NFT(negative_weight=0.0)(batch).losses
    wrong = batch.role == NEGATIVE
    assert (gradient(losses, batch)[wrong] == 0).all()
    assert (losses[wrong[:, None].expand(batch.mask.shape)[batch.mask]] == 0).all()


def test_token_weights_are_weights_of_its_units():
    batch = with_behavior(uneven_pairs())
    weighted = with_token_weights(batch)
    torch.testing.assert_close(NFT()(weighted).losses, NFT()(batch).losses)
    torch.testing.assert_close(unit_weights(weighted, "token"), weighted.token_weight[batch.mask])


def test_a_low_floor_holds_far_from_the_behaviour_policy():
    """Log-ratio 9.9, q 0.98: the implied ratio is about -1e6, the floor 1e-3 is kept to the last digit all the same."""
    batch = with_behavior(tiny.batch([(NEGATIVE, [0.0]), *[(POSITIVE, [0.0])] * 99]))
    behavior = torch.cat([batch.logps.detach()[:1] - 9.9, batch.logps.detach()[1:]])
    batch = dataclasses.replace(batch, behavior_logps=behavior)
    losses = NFT(epsilon=1e-3)(batch).losses
    assert losses[0].item() == pytest.approx(-0.02 * math.log(1e-3), rel=1e-5)
    assert gradient(losses, batch)[0].item() == pytest.approx(0.98 * math.exp(9.9) / 1e-3, rel=1e-4)


def test_the_ratio_is_not_taken_above_e_to_the_10():
    """Neither up nor down is there a gradient beyond; a right one's loss is then -(1 - q) * 10."""
    batch = with_behavior(tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [0.0])]))
    batch = dataclasses.replace(batch, behavior_logps=batch.logps.detach() - 50)
    assert_found(NFT()(batch).losses, batch, [-5.0, 0.0], [[0.0], [0.0]])
