"""Dr. DPO against numbers worked out by hand, a plain loop, DPO, and itself in two micro-batches."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import by_pairs, gradient, in_two_parts, sigmoid, uneven_pairs

DrDPO, DPO = load("dr_dpo"), load("dpo")


def test_values_by_hand():
    """Margins 1 and -1, beta 1: l = 0.3132617 and 1.3132617, exp(-l) = sigmoid(1) and sigmoid(-1), which sum to 1.

    beta_prime 1: L = -log(1/2) = 0.6931472 for both, w = 0.7310586 and 0.2689414.
    Gradients of the positives 2 w * -sigmoid(-z): -1.4621172 * 0.2689414 = -0.3932239, -0.5378828 * 0.7310586 the same.
    """
    batch = tiny.batch([(POSITIVE, [0.6]), (NEGATIVE, [-0.4])], [(POSITIVE, [-0.5]), (NEGATIVE, [0.5])])
    result = DrDPO(beta=1.0, beta_prime=1.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.6931472, 0.6931472], abs=1e-6)
    assert result.metrics["pair_weight"].tolist() == pytest.approx([1.4621172, 0.5378828], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0, -1.0], abs=1e-6)
    assert gradient(result.losses, batch)[:, 0].tolist() == pytest.approx(
        [-0.3932239, 0.3932239, -0.3932239, 0.3932239], abs=1e-6
    )


@pytest.mark.parametrize("beta, beta_prime", [(0.1, 1.0), (1.0, 0.3), (0.7, 5.0)])
def test_equals_a_plain_loop(beta, beta_prime):
    """The mean of the losses is L, and its gradient the derivative of L, over the pairs of all prompts."""
    batch = uneven_pairs()

    def dpo(positive, negative):
        z = beta * (positive - negative)
        return math.log(1 + math.exp(-z)), -beta * sigmoid(-z), beta * sigmoid(-z)

    plain, _ = by_pairs(batch, dpo)
    shares = [math.exp(-loss / beta_prime) for loss in plain]
    expected = -beta_prime * math.log(sum(shares) / len(shares))
    weight = iter([share / sum(shares) for share in shares])

    def weighted(positive, negative):
        w = next(weight)
        return tuple(w * value for value in dpo(positive, negative))

    _, grads = by_pairs(batch, weighted)
    losses = DrDPO(beta=beta, beta_prime=beta_prime)(batch).losses
    assert losses.tolist() == pytest.approx([expected] * len(plain), rel=1e-5)
    for found, wanted in zip(gradient(losses / len(plain), batch).tolist(), grads, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def test_large_beta_prime_is_dpo():
    """In the mean over the pairs; single losses are the step's, not the pair's own."""
    batch = uneven_pairs()
    ours, theirs = DrDPO(beta_prime=1e4)(batch).losses, DPO()(batch).losses
    torch.testing.assert_close(ours.mean(), theirs.mean(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, batch), rtol=1e-3, atol=1e-4)


def test_small_beta_prime_follows_the_best_pair_alone():
    batch = uneven_pairs()
    result, plain = DrDPO(beta=1.0, beta_prime=1e-3)(batch), DPO(beta=1.0)(batch).losses
    weights = result.metrics["pair_weight"]
    assert weights[plain.argmin()].item() == pytest.approx(len(plain)) and weights.sum().item() == pytest.approx(10)


@pytest.mark.parametrize("cut", [1, 2])
def test_the_cut_of_a_step_does_not_matter(cut):
    objective, whole = DrDPO(beta=0.8, beta_prime=0.5), uneven_pairs()
    parts = in_two_parts(objective, whole, cut)
    for name, values in {"losses": objective(whole).losses, **objective(whole).metrics}.items():
        found = [
            getattr(objective(part), name) if name == "losses" else objective(part).metrics[name] for part in parts
        ]
        torch.testing.assert_close(torch.cat(found), values)
    found = torch.autograd.grad(sum(objective(part).losses.sum() for part in parts), whole.logps)[0]
    torch.testing.assert_close(found, gradient(objective(whole).losses, whole))


def test_huge_losses_are_finite():
    batch = uneven_pairs(spread=1e4)
    losses = DrDPO(beta=1.0, beta_prime=1e-2)(batch).losses
    assert losses.isfinite().all() and gradient(losses, batch).isfinite().all()
