"""rDPO against numbers worked out by hand, a plain loop, and DPO (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, uneven_pairs

Robust, DPO = load("robust"), load("dpo")


def formula(beta: float, flipped: float):
    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        z = beta * (positive - negative)
        loss = (1 - flipped) * math.log(1 + math.exp(-z)) - flipped * math.log(1 + math.exp(z))
        slope = -(1 - flipped) / (1 + math.exp(z)) - flipped / (1 + math.exp(-z))
        return loss / (1 - 2 * flipped), beta * slope / (1 - 2 * flipped), -beta * slope / (1 - 2 * flipped)

    return pair


def test_values_by_hand():
    """Log-ratios 1.2 and -0.8, beta 0.5: margin 1; a share of 0.2 flipped.

    (0.8 * 0.3132617 - 0.2 * 1.3132617) / 0.6 = (0.2506094 - 0.2626523) / 0.6 = -0.0200716: below 0, as it may be.
    Slope (-0.8 * 0.2689414 - 0.2 * 0.7310586) / 0.6 = -0.6022748, times beta -0.3011374 a token.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    result = Robust(beta=0.5, label_smoothing=0.2)(batch)
    assert result.losses.tolist() == pytest.approx([-0.0200716], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0], abs=1e-6)
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.3011374] * 2, abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.3011374, 0], abs=1e-6)


@pytest.mark.parametrize("beta, flipped", [(0.1, 0.1), (0.8, 0.0), (0.5, 0.45)])
def test_equals_a_plain_loop(beta, flipped):
    assert_loop(Robust(beta=beta, label_smoothing=flipped), formula(beta, flipped))


def test_without_flips_it_is_dpo():
    batch = uneven_pairs()
    torch.testing.assert_close(Robust(label_smoothing=0.0)(batch).losses, DPO()(batch).losses)


@pytest.mark.parametrize("flipped", [0.1, 0.4])
def test_its_mean_over_the_flips_is_dpo_on_clean_labels(flipped):
    batch, objective = uneven_pairs(), Robust(beta=0.3, label_smoothing=flipped)
    wrong = dataclasses.replace(batch, pairs=batch.pairs.flip(-1))
    mean = (1 - flipped) * objective(batch).losses + flipped * objective(wrong).losses
    torch.testing.assert_close(mean, DPO(beta=0.3)(batch).losses)


def test_goes_on_pushing_pairs_that_are_told_apart():
    """The slope ends at beta * e / (1 - 2e) = 0.5 * 0.2 / 0.6."""
    batch = tiny.batch([(POSITIVE, [80.0]), (NEGATIVE, [-80.0])])
    losses = Robust(beta=0.5, label_smoothing=0.2)(batch).losses
    assert losses.item() < -10
    assert gradient(losses, batch).flatten().tolist() == pytest.approx([-1 / 6, 1 / 6], abs=1e-6)
