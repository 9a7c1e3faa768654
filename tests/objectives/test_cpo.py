"""CPO against numbers worked out by hand and a plain loop (TRL is asked in test_trl_cpo_parity.py)."""

from __future__ import annotations

import math

import pytest

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_bare_loop, assert_cut_does_not_matter, bare, gradient, sigmoid, uneven_pairs

CPO = load("cpo")


def test_values_by_hand():
    """Sums -0.5 - 0.7 = -1.2 and -3.2, beta 0.5: z = 1, log(1 + e^-1) = 0.3132617. alpha 2: plus 2 * 1.2 = 2.7132617.

    sigmoid(-1) * 0.5 = 0.1344707: the positive's tokens get -0.1344707 - 2, the negative's 0.1344707.
    """
    batch = bare(tiny.batch([(POSITIVE, [-0.5, -0.7]), (NEGATIVE, [-3.2])]))
    result = CPO(beta=0.5, alpha=2.0)(batch)
    assert result.losses.tolist() == pytest.approx([2.7132617], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-2.1344707, -2.1344707], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1344707, 0], abs=1e-6)


@pytest.mark.parametrize("beta, alpha, smoothing", [(0.1, 1.0, 0.0), (0.5, 0.0, 0.0), (0.3, 0.4, 0.2)])
def test_equals_a_plain_loop(beta, alpha, smoothing):
    def formula(positive, negative):
        z = beta * (positive - negative)
        slope = beta * (smoothing - sigmoid(-z))
        loss = (1 - smoothing) * math.log(1 + math.exp(-z)) + smoothing * math.log(1 + math.exp(z)) - alpha * positive
        return loss, slope - alpha, -slope

    assert_bare_loop(CPO(beta=beta, alpha=alpha, label_smoothing=smoothing), formula)


def test_a_positive_is_imitated_once_a_pair():
    """One positive (-1) with three negatives like it: three losses log 2 + 1, and three times the pull of imitation."""
    batch = bare(tiny.batch([(POSITIVE, [-1.0])] + [(NEGATIVE, [-1.0])] * 3))
    losses = CPO(beta=1.0)(batch).losses
    assert losses.tolist() == pytest.approx([math.log(2) + 1] * 3)
    assert gradient(losses, batch)[:, 0].tolist() == pytest.approx([-3 * 1.5, 0.5, 0.5, 0.5])


def test_trl_weighs_all_positive_tokens_alike_by_hand():
    """Positives of one token (-1) and of three (-2 each), z = 0: a mean of 7 / 4, in pairs 1/2 and 6/2, and log 2."""
    batch = bare(tiny.batch([(POSITIVE, [-1.0]), (NEGATIVE, [-1.0])], [(POSITIVE, [-2.0] * 3), (NEGATIVE, [-6.0])]))
    losses = CPO(alpha=1.0, nll="trl")(batch).losses
    assert losses.tolist() == pytest.approx([math.log(2) + 0.5, math.log(2) + 3.0])


@pytest.mark.parametrize("cut", [1, 2])
def test_the_cut_of_a_step_does_not_matter_for_trl(cut):
    assert_cut_does_not_matter(CPO(nll="trl"), bare(uneven_pairs(), shift=-3.0), cut)


def test_only_the_trl_option_couples_the_step():
    assert CPO(nll="trl").coupled and not CPO().coupled
