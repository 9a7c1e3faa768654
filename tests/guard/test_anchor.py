"""The KL anchor: nothing at the start, KL(start || policy) afterwards, with a gradient that leads back."""

from __future__ import annotations

import contextlib

import pytest
import torch

from align.guard.anchor import STRENGTH, Anchor
from align.guard.rows import FixedRows, shortest
from align.objectives import POSITIVE
from align.scoring.likeliest import K
from tests import tiny

ROWS = [tiny.row(f"What is {word}?", positives=[f"It is a {word}."]) for word in ("this", "that thing", "it")]


@pytest.fixture
def anchor() -> Anchor:
    how = {"device": "cpu", "tokens_per_device": 80, "pad_id": 258, "layout": "padded"}
    return Anchor(FixedRows(shortest(ROWS, POSITIVE, 3), autocast=contextlib.nullcontext, **how))


def log_distributions(model, rows) -> torch.Tensor:
    """(tokens, V) of every response token."""
    found = []
    for row in rows:
        ids = [*row.prompt_ids, *row.responses[0].ids]
        logits = model(input_ids=torch.tensor([ids])).logits[0]
        found.append(logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1))
    return torch.cat(found)


def held(anchor: Anchor, model) -> torch.Tensor:
    shares = [share() for share in anchor.losses(model)]
    assert len(shares) > 1, "several micro-batches, whose shares add up to the mean"
    return sum(shares)


def test_the_mean_kl_from_the_start(anchor):
    model = tiny.llama()
    anchor.rows.note_start(model)
    start = log_distributions(model, anchor.rows.rows).detach()
    at_start = held(anchor, model)
    assert at_start.item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    pairs = zip(start, log_distributions(model, anchor.rows.rows).detach(), strict=True)
    each = [tiny.coarse_kl(p, q, p.topk(K).indices.tolist()) for p, q in pairs]
    loss = held(anchor, model)
    assert loss.item() == pytest.approx(sum(each) / len(each), abs=1e-5) and loss.item() > 0.01
    loss.backward()
    with torch.no_grad():
        for weight in model.parameters():
            weight.sub_(1e-3 * weight.grad)
    assert held(anchor, model).item() < loss.item()


def test_its_weight_follows_the_objectives_pull(anchor):
    assert anchor.weight(0.0) == 0 and anchor.weight(40.0) == 40 * STRENGTH
