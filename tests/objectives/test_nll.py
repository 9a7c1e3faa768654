"""NLL against numbers worked out by hand, a plain loop, and torch's cross-entropy."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from align.objectives import NEGATIVE, POSITIVE, load
from align.objectives._units import unit_weights
from tests import tiny
from tests.objectives.loops import bare, gradient, uneven_responses

NLL = load("nll")
POSITIVES = ((2, 0), (1, 0), (3, 0))  # of each prompt; with `data.nat` negatives come as positives as well


def test_values_by_hand():
    """One loss a token, response by response: minus its log-prob, slope -1, whatever the length of its response."""
    batch = bare(tiny.batch([(POSITIVE, [-0.5, -0.25, -3.0]), (POSITIVE, [-2.0])], [(POSITIVE, [0.0, -1e4])]))
    losses = NLL()(batch).losses
    assert losses.tolist() == pytest.approx([0.5, 0.25, 3.0, 2.0, 0.0, 1e4], rel=1e-5, abs=1e-6)
    assert gradient(losses, batch).tolist() == [[-1, -1, -1], [-1, 0, 0], [-1, -1, 0]]


def test_equals_a_plain_loop():
    batch = bare(uneven_responses(counts=POSITIVES), shift=-2.0)
    rows = zip(batch.logps.tolist(), batch.mask.tolist(), strict=True)
    expected = [-logp for logps, mask in rows for logp, real in zip(logps, mask, strict=True) if real]
    assert NLL()(batch).losses.tolist() == pytest.approx(expected)
    assert len(expected) == batch.mask.sum() < batch.mask.numel()


def test_is_the_cross_entropy_of_the_response_tokens():
    """Over the tokens of a step, as everywhere in SFT: the long answer counts more, not each answer the same."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 4, 11, generator=generator)
    targets = torch.randint(11, (2, 4), generator=generator)
    mask = torch.tensor([[True] * 4, [True] + [False] * 3])
    logps = logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0] * mask
    shape = tiny.batch([(POSITIVE, [0.0] * 4)], [(POSITIVE, [0.0])])
    loss = NLL()(dataclasses.replace(shape, logps=logps, ref_logps=None)).losses.mean()
    expected = F.cross_entropy(logits.flatten(0, 1), targets.masked_fill(~mask, -100).flatten())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() != pytest.approx((-logps.sum(-1) / mask.sum(-1)).mean().item(), rel=1e-3)


def test_one_loss_and_one_weight_a_token():
    """The trainer weighs each loss: example weights 2 and 0.5, token weights on top; nothing is weighed twice."""
    batch = bare(tiny.batch([(POSITIVE, [-1.0, -2.0]), (POSITIVE, [-4.0])]))
    plain = NLL()(batch).losses
    batch = dataclasses.replace(
        batch, weight=torch.tensor([2.0, 0.5]), token_weight=torch.tensor([[1.0, 0.25], [3.0, 9.0]])
    )
    losses, weights = NLL()(batch).losses, unit_weights(batch, NLL.normalize_by)
    assert torch.equal(losses, plain)
    assert weights.tolist() == [2.0, 0.5, 1.5]  # 2 * 1, 2 * 0.25, 0.5 * 3; the padding's 9 has no say
    assert (losses * weights).sum().item() == pytest.approx(2 * 1 + 0.5 * 2 + 1.5 * 4)


def test_asks_for_positives_alone():
    batch = bare(tiny.batch([(NEGATIVE, [-1.0, -2.0]), (POSITIVE, [-4.0])]))
    losses = NLL()(batch).losses
    assert losses.tolist() == pytest.approx([0.0, 0.0, 4.0])  # one a token, so that they match their weights
    assert gradient(losses, batch).tolist() == [[0, 0], [-1, 0]]
    assert NLL().roles() == {POSITIVE} and NEGATIVE not in NLL().roles()
    assert NLL().needs == ("positives",) and not NLL().coupled
