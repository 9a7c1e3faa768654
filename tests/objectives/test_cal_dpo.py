"""Cal-DPO against numbers worked out by hand, a plain loop, and DPO."""

from __future__ import annotations

import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, sigmoid, uneven_pairs

CalDPO, DPO = load("cal_dpo"), load("dpo")


def test_values_by_hand():
    """Log-ratios 0.6 and -0.4, beta 0.25: targets +2 and -2, distances 1.4 and 1.6, squares 1.96 + 2.56 = 4.52.

    loss = log(1 + e^-1) + 0.5 * 4.52 = 0.3132617 + 2.26 = 2.5732617.
    Slopes: -sigmoid(-1) - 1.4 = -0.2689414 - 1.4 and 0.2689414 + 1.6. beta is not inside the sigmoid.
    """
    batch = tiny.batch([(POSITIVE, [0.2, 0.4]), (NEGATIVE, [-0.4])])
    result = CalDPO(beta=0.25)(batch)
    assert result.losses.tolist() == pytest.approx([2.5732617], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    assert gradient(result.losses, batch)[batch.mask].tolist() == pytest.approx(
        [-1.6689414, -1.6689414, 1.8689414], abs=1e-6
    )


@pytest.mark.parametrize("beta, weight", [(0.001, 0.5), (0.1, 0.5), (0.5, 0.05)])
def test_equals_a_plain_loop(beta, weight):
    def formula(positive, negative):
        z, target = positive - negative, 1 / (2 * beta)
        loss = math.log(1 + math.exp(-z)) + weight * ((positive - target) ** 2 + (negative + target) ** 2)
        pull = sigmoid(-z)
        return loss, -pull + 2 * weight * (positive - target), pull + 2 * weight * (negative + target)

    assert_loop(CalDPO(beta=beta, calibration_weight=weight), formula)


def test_without_calibration_it_is_dpo_at_beta_one():
    batch = uneven_pairs()
    ours, theirs = CalDPO(calibration_weight=0.0)(batch).losses, DPO(beta=1.0)(batch).losses
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, batch))


def test_a_negative_below_its_target_is_raised():
    """beta 0.25, targets +-2: at h(y_l) = -5 and h(y_w) = 2 the square pulls the negative up by 3, log sigmoid's push
    down is sigmoid(-7) = 0.0009111."""
    batch = tiny.batch([(POSITIVE, [2.0]), (NEGATIVE, [-5.0])])
    found = gradient(CalDPO(beta=0.25)(batch).losses, batch)[:, 0].tolist()
    assert found == pytest.approx([-0.0009111, -3 + 0.0009111], abs=1e-6)
