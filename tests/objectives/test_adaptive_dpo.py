"""Adaptive-DPO against numbers worked out by hand, a plain loop, and itself in two micro-batches."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, Batch, load
from tests import tiny
from tests.objectives.loops import assert_cut_does_not_matter, gradient, log_ratios, sigmoid, uneven_pairs

AdaptiveDPO, DPO = load("adaptive_dpo"), load("dpo")


def with_copies(batch: Batch, *deltas: torch.Tensor) -> Batch:
    """The batch with copies of the policy whose log-probs differ from it by `deltas` (N, T)."""
    return dataclasses.replace(batch, ema_logps=torch.stack([(batch.logps + delta).detach() for delta in deltas]))


def uneven_copies() -> Batch:
    batch, generator = uneven_pairs(), torch.Generator().manual_seed(1)
    return with_copies(batch, *(torch.randn((2, *batch.mask.shape), generator=generator) * batch.mask))


def by_loop(batch: Batch, beta, rho, intercept, temperature, normalize, scale_mean):
    """(losses, slope of each loss along its own logit, uncertainties) of all pairs."""
    everyone = [batch.logps, *([] if batch.ema_logps is None else batch.ema_logps)]
    rows = []
    for logps in everyone:
        ratios = log_ratios(dataclasses.replace(batch, logps=logps))
        rows.append([ratios[good] - ratios[bad] for good, bad in batch.pairs.tolist()])
    norms = [math.sqrt(sum(logit * logit for logit in row)) if normalize else 1.0 for row in rows]
    losses, slopes, uncertainties = [], [], []
    for pair, logit in enumerate(rows[0]):
        opinions = [rho * row[pair] / norm for row, norm in zip(rows, norms, strict=True)]
        u = abs(sum(map(sigmoid, opinions)) / len(opinions) - 1)
        u *= min(statistics.stdev(opinions), 1) if len(opinions) > 1 else 1
        weight = 1 / (intercept + temperature * u)
        mean = sum(rows[0]) / len(rows[0]) * (beta if scale_mean else 1)
        z = beta * logit - (mean - u * u / beta)
        losses.append(weight * math.log(1 + math.exp(-z)))
        slopes.append(-weight * beta * sigmoid(-z))
        uncertainties.append(u)
    return losses, slopes, uncertainties


def test_values_by_hand():
    """Two pairs with l = 3 and -4, norm 5, rho 2.5: opinions 1.5 and -2. The only copy says 4 and 3: 2 and 1.5.

    Pair 2: conf = 1 - (sigmoid(-2) + sigmoid(1.5)) / 2 = 1 - (0.1192029 + 0.8175745) / 2 = 0.5316113,
    std of (-2, 1.5) = 3.5 / sqrt 2 = 2.47, cut to 1: u = 0.5316113, W = 1 / (1 + 10 u) = 0.1583252.
    beta 0.5, mean l = -0.5: Gamma = -u^2 / 0.5 - 0.25 = -0.5652212 - 0.25 = -0.8152212, z = -2 - Gamma = -1.1847788,
    loss = 0.1583252 * log(1 + e^1.1847788) = 0.1583252 * 1.4516053 = 0.2298257.
    Slope of l: -W * 0.5 * sigmoid(1.1847788) = -0.0791626 * 0.7658060 = -0.0606232.
    Pair 1: conf = 1 - (0.8175745 + 0.8807971) / 2 = 0.1508142, std = 0.5 / sqrt 2 = 0.3535534, u = 0.0533209.
    """
    batch = tiny.batch([(POSITIVE, [1.0, 2.0]), (NEGATIVE, [0.0])], [(POSITIVE, [-4.0]), (NEGATIVE, [0.0])])
    batch = with_copies(batch, torch.tensor([[0.0, 1.0], [0.0, 0.0], [7.0, 0.0], [0.0, 0.0]]))
    result = AdaptiveDPO(beta=0.5, rho=2.5)(batch)
    assert result.metrics["uncertainty"].tolist() == pytest.approx([0.0533209, 0.5316113], abs=1e-6)
    assert result.metrics["pair_weight"][1].item() == pytest.approx(0.1583252, abs=1e-6)
    assert result.losses[1].item() == pytest.approx(0.2298257, abs=1e-6)
    assert gradient(result.losses[1], batch)[2:, 0].tolist() == pytest.approx([-0.0606232, 0.0606232], abs=1e-6)


@pytest.mark.parametrize("normalize, scale_mean", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("copies", [0, 1, 2])
def test_equals_a_plain_loop(normalize, scale_mean, copies):
    """Only the logit in the loss itself has a gradient: weight and margin have none."""
    batch = uneven_copies()
    batch = dataclasses.replace(batch, ema_logps=batch.ema_logps[:copies] if copies else None)
    hyper = {"beta": 0.7, "rho": 4.0, "intercept": 0.8, "temperature": 6.0}
    losses, slopes, uncertainties = by_loop(batch, **hyper, normalize=normalize, scale_mean=scale_mean)
    result = AdaptiveDPO(**hyper, normalize=normalize, scale_mean=scale_mean)(batch)
    assert result.losses.tolist() == pytest.approx(losses, rel=1e-4)
    assert result.metrics["uncertainty"].tolist() == pytest.approx(uncertainties, rel=1e-4, abs=1e-6)
    expected = torch.zeros(batch.mask.shape)
    for (good, bad), slope in zip(batch.pairs.tolist(), slopes, strict=True):
        expected[good] += slope * batch.mask[good]
        expected[bad] -= slope * batch.mask[bad]
    torch.testing.assert_close(gradient(result.losses, batch), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("cut", [1, 2])
def test_the_cut_of_a_step_does_not_matter(cut):
    assert_cut_does_not_matter(AdaptiveDPO(beta=0.8, rho=5.0), uneven_copies(), cut)


def test_starts_as_dpo():
    """Policy, copies and reference equal: all agree, u = 0 and W = 1, the margin is 0."""
    batch = tiny.batch([(POSITIVE, [0.0, 0.0]), (NEGATIVE, [0.0])], [(POSITIVE, [0.0]), (NEGATIVE, [0.0])])
    batch = with_copies(batch, torch.zeros(batch.mask.shape), torch.zeros(batch.mask.shape))
    ours, theirs = AdaptiveDPO(beta=0.3)(batch).losses, DPO(beta=0.3)(batch).losses
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, batch))


def test_the_running_means_are_those_of_the_released_code():
    assert AdaptiveDPO().ema_decays == (0.9999, 0.5)


def test_a_mean_that_has_not_left_the_start_has_no_say():
    """Its logits are rounding: it decides nothing alone, and among others it is as if it were not there."""
    batch = uneven_pairs()
    at_start = (batch.ref_logps - batch.logps.detach()) * batch.mask
    away = 0.5 * at_start.roll(1, -1) * batch.mask
    silent = with_copies(batch, at_start, at_start)
    alone = with_copies(batch, away)
    joined = with_copies(batch, at_start, away)
    assert AdaptiveDPO()(silent).metrics["uncertainty"].tolist() == [0.0] * len(batch.pairs)
    assert AdaptiveDPO()(alone).metrics["uncertainty"].max() > 0.01
    torch.testing.assert_close(AdaptiveDPO()(joined).losses, AdaptiveDPO()(alone).losses)
    code = AdaptiveDPO(smallest_norm=0)(joined).losses
    assert (code - AdaptiveDPO()(alone).losses).abs().max() > 1e-3
