"""DPO and cDPO against numbers worked out by hand and a plain loop (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import math
import random

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, Batch, load
from tests import tiny

DPO = load("dpo")


def gradient(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    return torch.autograd.grad(losses.sum(), batch.logps)[0]


def by_loop(batch: Batch, beta: float, smoothing: float) -> tuple[list[float], list[list[float]]]:
    """Losses by pair and the gradient of their sum, with nothing but `math`."""
    logps, ref_logps, mask = batch.logps.tolist(), batch.ref_logps.tolist(), batch.mask.tolist()
    losses, grads = [], [[0.0] * len(row) for row in mask]
    for good, bad in batch.pairs.tolist():
        ratio = {
            n: sum(p - r for p, r, m in zip(logps[n], ref_logps[n], mask[n], strict=True) if m) for n in (good, bad)
        }
        z = beta * (ratio[good] - ratio[bad])
        losses.append((1 - smoothing) * math.log(1 + math.exp(-z)) + smoothing * math.log(1 + math.exp(z)))
        slope = beta * (smoothing - 1 / (1 + math.exp(z)))  # d loss / d log-ratio of the positive
        for n, sign in ((good, 1), (bad, -1)):
            grads[n] = [before + sign * slope * real for before, real in zip(grads[n], mask[n], strict=True)]
    return losses, grads


def test_values_by_hand():
    """Log-ratios 0.5 + 0.7 = 1.2 and -0.8, beta 0.5: margin 0.5 * 2.0 = 1, loss log(1 + e^-1) = 0.3132617.

    Gradient: sigmoid(-1) = 0.2689414 times beta, 0.1344707, down on the positive's tokens, up on the negative's.
    A second pair the wrong way round: margin 0.5 * (-1 - 1) = -1, loss log(1 + e) = 1.3132617.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])], [(NEGATIVE, [1.0]), (POSITIVE, [-1.0])])
    result = DPO(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.3132617, 1.3132617], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0, -1.0], abs=1e-6)
    assert result.metrics["accuracy"].tolist() == [1.0, 0.0]
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1344707, -0.1344707], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1344707, 0.0], abs=1e-6)


def test_label_smoothing_by_hand():
    """cDPO, e = 0.2, margin 1: 0.8 * 0.3132617 + 0.2 * 1.3132617 = 0.2506094 + 0.2626523 = 0.5132617.

    Gradient to the margin: e - sigmoid(-1) = 0.2 - 0.2689414 = -0.0689414; times beta 0.5: -0.0344707 a token.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    losses = DPO(beta=0.5, label_smoothing=0.2)(batch).losses
    assert losses.tolist() == pytest.approx([0.5132617], abs=1e-6)
    assert gradient(losses, batch)[:, 0].tolist() == pytest.approx([-0.0344707, 0.0344707], abs=1e-6)


def test_label_smoothing_stops_at_its_own_confidence():
    """cDPO is least where sigmoid(margin) = 1 - e: for e = 0.2 at margin log(0.8 / 0.2) = 1.3862944."""
    batch = tiny.batch([(POSITIVE, [math.log(4)]), (NEGATIVE, [0.0])])
    losses = DPO(beta=1.0, label_smoothing=0.2)(batch).losses
    assert gradient(losses, batch).abs().max().item() == pytest.approx(0, abs=1e-6)
    assert losses.item() == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=1e-6)


def test_all_pairs_of_a_prompt_count():
    """Two positives (0.0, 1.0) and two negatives (0.0, -2.0), beta 1: margins 0, 2, 1, 3 in the order of `pairs`.

    Losses log(1 + e^-m): 0.6931472, 0.1269280, 0.3132617, 0.0485874.
    """
    batch = tiny.batch([(POSITIVE, [0.0]), (POSITIVE, [1.0]), (NEGATIVE, [0.0]), (NEGATIVE, [-2.0])])
    assert batch.pairs.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    losses = DPO(beta=1.0)(batch).losses
    assert losses.tolist() == pytest.approx([0.6931472, 0.1269280, 0.3132617, 0.0485874], abs=1e-6)


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.0), (1.2, 0.0), (0.6, 0.1), (0.3, 0.49)])
def test_equals_a_plain_loop(beta, smoothing):
    """Unequal lengths, unequal numbers of pairs a prompt."""
    draw = random.Random(7)
    prompts = []
    for positives, negatives in ((1, 1), (2, 3), (3, 1)):
        roles = [POSITIVE] * positives + [NEGATIVE] * negatives
        draw.shuffle(roles)
        prompts.append([(role, [draw.gauss(0, 1) for _ in range(draw.randint(1, 6))]) for role in roles])
    batch = tiny.batch(*prompts)
    assert len(batch.pairs) == 1 + 6 + 3
    losses = DPO(beta=beta, label_smoothing=smoothing)(batch).losses
    expected, grads = by_loop(batch, beta, smoothing)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, wanted in zip(gradient(losses, batch).tolist(), grads, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)
