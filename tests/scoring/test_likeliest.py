"""Distributions in short: the KL over their classes never exceeds the exact one and is close to it."""

from __future__ import annotations

import math

import pytest
import torch

from align.scoring.likeliest import K, class_logps, divergence, likeliest


def exact(logits: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    log_p, log_q = logits.double().log_softmax(-1), other.double().log_softmax(-1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)


@pytest.mark.parametrize("scale", [0.5, 3.0, 8.0])
def test_a_lower_bound_of_the_exact_kl_and_close_where_few_tokens_hold_the_mass(scale):
    draw = torch.Generator().manual_seed(0)
    start = scale * torch.randn(40, 3000, generator=draw)
    now = start + torch.randn(40, 3000, generator=draw)
    ids, logps = likeliest(start)
    assert ids.shape == (40, K) and logps.shape == (40, K + 1)
    torch.testing.assert_close(logps.exp().sum(-1), torch.ones(40))
    found, true = divergence(class_logps(now, ids), logps), exact(now, start)
    assert (found <= true + 1e-4).all() and (found >= 0).all()
    assert scale < 8 or (found / true).mean() > 0.85


def test_by_hand():
    """p = (1/2, 1/4, 1/8, 1/8), q = (1/4, 1/4, 1/4, 1/4); the two likeliest of p, and a class of the other two."""
    p, q = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), torch.full((1, 4), 0.25).log()
    ids = torch.tensor([[0, 1]])
    found = divergence(class_logps(p, ids), class_logps(q, ids))
    assert found.item() == pytest.approx(0.5 * math.log(2) + 0 + 0.25 * math.log(0.5), abs=1e-6)


def test_what_has_moved_to_a_single_unlikely_token_is_seen():
    start = torch.zeros(1, 1000)
    start[0, :5] = 10.0
    ids, logps = likeliest(start)
    gone = torch.zeros(1, 1000)
    gone[0, 999] = 50.0
    assert divergence(class_logps(gone, ids), logps).item() > 3
