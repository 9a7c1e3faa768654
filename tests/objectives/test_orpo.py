"""ORPO against numbers worked out by hand and a plain loop (TRL is asked in test_trl_cpo_parity.py)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_bare_loop, assert_cut_does_not_matter, bare, gradient, sigmoid, uneven_pairs

ORPO = load("orpo")


def test_values_by_hand():
    """p = 0.5 and 0.2: odds 1 and 1/4, their ratio 4, sigmoid(log 4) = 0.8.

    lambda 0.5: loss = log 2 - 0.5 log 0.8 = 0.6931472 + 0.1115718 = 0.8047190.
    d log odds / d log p = 1 / (1 - p): 2 and 1.25. Slopes -1 - 0.5 * 0.2 * 2 = -1.2 and 0.5 * 0.2 * 1.25 = 0.125, the
    negative's shared by two tokens.
    """
    batch = bare(tiny.batch([(POSITIVE, [math.log(0.5)]), (NEGATIVE, [math.log(0.1), math.log(0.4)])]))
    result = ORPO(lambda_=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.8047190], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([math.log(4)], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-1.2, 0], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.0625, 0.0625], abs=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.1, 1.0])
def test_equals_a_plain_loop(weight):
    def formula(positive, negative):
        better, worse = math.exp(positive), math.exp(negative)
        z = math.log(better / (1 - better)) - math.log(worse / (1 - worse))
        push = weight * sigmoid(-z)
        loss = -positive + weight * math.log(1 + math.exp(-z))
        return loss, -1 - push / (1 - better), push / (1 - worse)

    assert_bare_loop(ORPO(lambda_=weight), formula, per_token=True)


def test_trl_weighs_all_positive_tokens_alike_by_hand():
    """Positives of one token (-1) and of three (-2 each): paper -(-1 - 2) / 2 = 1.5 a pair, TRL 7 / 4 = 1.75.

    lambda = 0. A unit's loss is its sum over the mean length 2: 0.5 and 3. Each token gets 1/2, a quarter of two pairs.
    """
    batch = bare(tiny.batch([(POSITIVE, [-1.0]), (NEGATIVE, [-3.0])], [(POSITIVE, [-2.0] * 3), (NEGATIVE, [-3.0] * 2)]))
    assert ORPO(lambda_=0.0)(batch).losses.tolist() == pytest.approx([1.0, 2.0])
    losses = ORPO(lambda_=0.0, nll="trl")(batch).losses
    assert losses.tolist() == pytest.approx([0.5, 3.0])
    assert gradient(losses, batch)[batch.mask].tolist() == pytest.approx([-0.5, 0, -0.5, -0.5, -0.5, 0, 0])


@pytest.mark.parametrize("cut", [1, 2])
def test_the_cut_of_a_step_does_not_matter_for_trl(cut):
    assert_cut_does_not_matter(ORPO(nll="trl"), bare(uneven_pairs(), shift=-3.0), cut)


def test_only_the_trl_option_couples_the_step():
    assert ORPO(nll="trl").coupled and not ORPO().coupled


@pytest.mark.parametrize("level", [0.0, -1e-9, -1e-3])
@pytest.mark.parametrize("weight", [1.0, -0.5, 0.0])
def test_certain_tokens_are_finite(level, weight):
    """Even where step weights turn a log-prob's sign: a mean of 0 or above is where the odds end."""
    batch = bare(tiny.batch([(POSITIVE, [level, level]), (NEGATIVE, [level])]))
    batch = dataclasses.replace(batch, token_weight=torch.full(batch.mask.shape, weight))
    losses = ORPO(lambda_=1.0)(batch).losses
    assert losses.isfinite().all() and gradient(losses, batch).isfinite().all()
