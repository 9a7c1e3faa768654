"""KTO against numbers worked out by hand and a plain loop (TRL: test_trl_kto_parity.py)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, Batch, WholeStep, load
from tests import tiny
from tests.objectives.loops import assert_responses_loop, gradient, sigmoid, uneven_responses

KTO = load("kto")


def with_kl(batch: Batch, *mismatched: float) -> Batch:
    return dataclasses.replace(batch, step=WholeStep({"mismatched": torch.tensor(mismatched)}))


def formula(beta: float, kl: float = 0.0, positive: float = 1.0, negative: float = 1.0):
    """1 - sigmoid of how much better than z a positive is, or worse a negative; times the weight of the role."""

    def response(role: int, ratio: float) -> tuple[float, float]:
        weight = positive if role == POSITIVE else negative
        miss = 1 - sigmoid(role * beta * (ratio - kl))
        return weight * miss, -role * weight * beta * miss * (1 - miss)

    return response


def test_values_by_hand():
    """z = (1 - 0.5 + 0.7) / 3 = 0.4; beta 0.5, weights 2 and 3.

    Positive, log-ratio 2 + 0.4 = 2.4: 2 * (1 - sigmoid(0.5 * 2)) = 2 * 0.2689414; slope -2 * 0.5 * 0.1966119.
    Negative, log-ratio -1.6: 3 * (1 - sigmoid(0.5 * 2)) = 3 * 0.2689414; slope 3 * 0.5 * 0.1966119.
    sigmoid' (1) = 0.2689414 * 0.7310586 = 0.1966119.
    """
    batch = with_kl(tiny.batch([(POSITIVE, [2.0, 0.4]), (NEGATIVE, [-1.6])]), 1.0, -0.5, 0.7)
    result = KTO(beta=0.5, positive_weight=2.0, negative_weight=3.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.5378828, 0.8068243], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1966119] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.2949179, 0.0], abs=1e-6)
    assert result.metrics["kl"].tolist() == pytest.approx([0.4, 0.4])
    assert result.metrics["reward/positive"].tolist() == pytest.approx([1.2])
    assert result.metrics["reward/negative"].tolist() == pytest.approx([-0.8])


@pytest.mark.parametrize("mismatched", [(-1.0, -3.0, 1.0), (0.0,), ()])
def test_kl_is_not_below_zero(mismatched):
    """Nor is it anything but 0 where a step has a single prompt, and so no mismatched responses."""
    batch = uneven_responses()
    result = KTO()(with_kl(batch, *mismatched))
    assert torch.equal(result.losses, KTO()(batch).losses)
    assert result.metrics["kl"].tolist() == [0.0] * len(batch.role)


def test_no_gradient_through_the_kl():
    """Not even where the mismatched log-ratios are the policy's, graph and all."""
    batch = uneven_responses()
    own = batch.log_ratios().abs()
    attached = KTO()(dataclasses.replace(batch, step=WholeStep({"mismatched": own}))).losses
    assert attached.tolist() != KTO()(batch).losses.tolist()
    constant = KTO()(with_kl(batch, *own.tolist())).losses
    torch.testing.assert_close(gradient(attached, batch), gradient(constant, batch))


@pytest.mark.parametrize(
    "beta, kl, positive, negative", [(0.1, 0.0, 1.0, 1.0), (0.7, 0.8, 1.0, 1.0), (0.4, 0.3, 1.3, 0.2)]
)
def test_equals_a_plain_loop(beta, kl, positive, negative):
    """Unequal lengths; prompts of both roles, of negatives alone, of a positive alone."""
    batch = with_kl(uneven_responses(), kl, kl)
    objective = KTO(beta=beta, positive_weight=positive, negative_weight=negative)
    assert_responses_loop(objective, batch, formula(beta, kl, positive, negative))


@pytest.mark.parametrize("counts", [((0, 2), (0, 1)), ((3, 0), (1, 0))])
def test_one_role_alone_is_legal(counts):
    batch = with_kl(uneven_responses(counts=counts), 0.6)
    assert_responses_loop(KTO(), batch, formula(0.1, 0.6))
    result = KTO()(batch)
    assert sorted(len(result.metrics[f"reward/{role}"]) for role in ("positive", "negative")) == [0, len(batch.role)]


def test_a_role_that_weighs_nothing_is_left_alone():
    batch = uneven_responses()
    found = gradient(KTO(positive_weight=0.0)(batch).losses, batch)
    assert (found[batch.role == POSITIVE] == 0).all()
    assert (found[batch.role == NEGATIVE][:, 0] > 0).all()


def test_saturates_on_both_sides():
    """Responses far from z on either side have no pull: the loss is 0 or the weight, its slope 0."""
    batch = tiny.batch([(role, [far]) for role in (POSITIVE, NEGATIVE) for far in (1e4, -1e4)])
    losses = KTO(negative_weight=2.0)(batch).losses
    assert losses.tolist() == pytest.approx([0.0, 1.0, 2.0, 0.0], abs=1e-6)
    assert gradient(losses, batch).abs().max().item() == 0


def test_kl_shifts_what_counts_as_good():
    """A positive no better than the policy's mean distance still has half the loss: h = z."""
    batch = tiny.batch([(POSITIVE, [0.75]), (NEGATIVE, [0.75])])
    assert KTO()(with_kl(batch, 0.75)).losses.tolist() == pytest.approx([0.5, 0.5])
    assert KTO(beta=4.0)(batch).losses.tolist() == pytest.approx([1 - sigmoid(3), sigmoid(3)], abs=1e-6)
