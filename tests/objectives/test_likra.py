"""Likra against numbers worked out by hand, torch's cross-entropy, and NLL."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from align.objectives import NEGATIVE, POSITIVE, load
from align.objectives._units import unit_groups, unit_weights
from tests import tiny
from tests.objectives.loops import bare, gradient

Likra, NLL = load("likra"), load("nll")


def step_loss(objective, batch) -> float:
    """What the trainer makes of a step of one micro-batch."""
    losses, weights = objective(batch).losses, unit_weights(batch, objective.normalize_by)
    groups = unit_groups(batch, objective.normalize_by)
    return sum((losses * weights)[groups == group].sum().item() / (groups == group).sum() for group in groups.unique())


def test_values_by_hand():
    """Minus the log-prob of each token of either role: both are imitated, nothing is pushed down."""
    batch = bare(tiny.batch([(POSITIVE, [-0.5, -0.25]), (NEGATIVE, [-2.0])], [(NEGATIVE, [-1.0, -1e4])]))
    losses = Likra()(batch).losses
    assert losses.tolist() == pytest.approx([0.5, 0.25, 2.0, 1.0, 1e4])
    assert gradient(losses, batch).tolist() == [[-1, -1], [-1, 0], [-1, -1]]


def test_each_head_is_divided_by_its_own_tokens():
    """One positive token and four negative ones: the positive head is not held back by the number of negatives."""
    batch = bare(tiny.batch([(POSITIVE, [-1.0]), (NEGATIVE, [-2.0, -2.0]), (NEGATIVE, [-4.0, -4.0])]))
    assert step_loss(Likra(), batch) == pytest.approx(1.0 + 3.0)
    assert unit_groups(batch, "role_token").tolist() == [1, -1, -1, -1, -1]
    assert unit_groups(batch, "token").tolist() == [0] * 5


def test_is_the_cross_entropy_of_either_head():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 11, generator=generator)
    targets = torch.randint(11, (2, 4), generator=generator)
    mask = torch.tensor([[True] * 4, [True] * 2 + [False] * 2])
    logps = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask
    shape = tiny.batch([(POSITIVE, [0.0] * 4), (NEGATIVE, [0.0] * 2)])
    batch = dataclasses.replace(shape, logps=logps, ref_logps=None)
    expected = sum(F.cross_entropy(logits[head, :length], targets[head, :length]) for head, length in ((0, 4), (1, 2)))
    assert step_loss(Likra(), batch) == pytest.approx(expected.item(), rel=1e-6)


def test_positives_alone_are_nll():
    batch = bare(tiny.batch([(POSITIVE, [-1.0, -2.5]), (POSITIVE, [-4.0])], [(POSITIVE, [-0.5, -3.0])]))
    assert torch.equal(Likra(heads="positive")(batch).losses, NLL()(batch).losses)
    assert step_loss(Likra(heads="positive"), batch) == pytest.approx(step_loss(NLL(), batch))


@pytest.mark.parametrize(
    ("heads", "adapters"),
    [
        ("both", {POSITIVE: "positive", NEGATIVE: "negative"}),
        ("positive", {POSITIVE: "positive"}),
        ("negative", {NEGATIVE: "negative"}),
    ],
)
def test_reads_the_roles_of_its_heads(heads, adapters):
    objective = Likra(heads=heads)
    assert objective.adapters == adapters and objective.roles() == set(adapters)
    assert "reference" not in objective.needs and not objective.coupled
    batch = bare(tiny.batch([(POSITIVE, [-1.0]), (NEGATIVE, [-2.0])]))
    expected = [1.0 if POSITIVE in adapters else 0.0, 2.0 if NEGATIVE in adapters else 0.0]
    assert objective(batch).losses.tolist() == pytest.approx(expected)


def test_weights_of_the_rows_count_once():
    batch = bare(tiny.batch([(POSITIVE, [-1.0, -2.0]), (NEGATIVE, [-4.0])]))
    weighed = dataclasses.replace(batch, weight=torch.tensor([2.0, 0.5]))
    assert torch.equal(Likra()(weighed).losses, Likra()(batch).losses)
    assert unit_weights(weighed, "role_token").tolist() == [2.0, 2.0, 0.5]
    assert step_loss(Likra(), weighed) == pytest.approx(2 * 1.5 + 0.5 * 4)
