"""EXO against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import math

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient

EXO, DPO = load("exo"), load("dpo")


def formula(beta: float, smoothing: float):
    """The KL itself, from the two probabilities."""

    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        weights = math.exp(beta * positive), math.exp(beta * negative)
        q = [weight / sum(weights) for weight in weights]
        loss = q[0] * math.log(q[0] / (1 - smoothing)) + q[1] * math.log(q[1] / smoothing)
        slope = beta * q[0] * q[1] * (math.log(q[0] / q[1]) - math.log((1 - smoothing) / smoothing))
        return loss, slope, -slope

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5: margin 1, q = 0.7310586 and 0.2689414, the label 0.8 and 0.2.

    0.7310586 * (-0.3132617 + 0.2231436) + 0.2689414 * (-1.3132617 + 1.6094379) = -0.0658816 + 0.0796541 = 0.0137725.
    Slope 0.7310586 * 0.2689414 * (1 - log 4) = 0.1966119 * -0.3862944 = -0.0759501, times beta -0.0379750 a token.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = EXO(beta=0.5, label_smoothing=0.2)(batch)
    assert result.losses.tolist() == pytest.approx([0.0137725], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.0379750] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.0379750, 0], abs=1e-6)


@pytest.mark.parametrize("beta, smoothing", [(0.1, 1e-3), (0.9, 0.1), (0.4, 0.45)])
def test_equals_a_plain_loop(beta, smoothing):
    assert_loop(EXO(beta=beta, label_smoothing=smoothing), formula(beta, smoothing))


def test_is_zero_at_the_label_and_lets_hopeless_pairs_go():
    """Margin log(0.9 / 0.1) = log 9. At margin -40 the probability of the positive, and so the slope, is 4e-18."""
    batch = tiny.batch([(POSITIVE, [math.log(9)]), (NEGATIVE, [0.0])], [(POSITIVE, [-40.0]), (NEGATIVE, [0.0])])
    losses = EXO(beta=1.0, label_smoothing=0.1)(batch).losses
    assert losses.tolist() == pytest.approx([0, -math.log(0.1)], abs=1e-6)
    assert gradient(losses, batch).abs().max().item() == pytest.approx(0, abs=1e-6)


def test_turns_around_where_dpo_with_the_same_smoothing_does():
    """Their minimum is where the policy has the label's probabilities, at margin log(0.8 / 0.2) = 1.39."""
    batch = tiny.batch(*[[(POSITIVE, [margin]), (NEGATIVE, [0.0])] for margin in (-3.0, 1.3, 1.5, 6.0)])
    for objective in (EXO, DPO):
        losses = objective(beta=1.0, label_smoothing=0.2)(batch).losses
        assert gradient(losses, batch)[::2, 0].sign().tolist() == [-1, -1, 1, 1]
