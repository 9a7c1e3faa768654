"""Negative distillation against numbers worked out by hand, a plain loop over the vocabulary, and unlikelihood."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from align.scoring.extras import extra
from tests import tiny
from tests.objectives.loops import assert_found, bare, real, uneven_pairs, with_token_weights

NegativeDistillation = load("negative_distillation")
HALF, QUARTER = math.log(1 / 2), math.log(1 / 4)


def given(batch, soft: torch.Tensor, progress: float = 0.5):
    return dataclasses.replace(batch, extras={"soft_unlikelihood": soft}, progress=progress)


def loop(batch, share: float):
    weights, softs = real(batch, batch.token_weight, 1.0), real(batch, batch.extras["soft_unlikelihood"])
    losses, slopes = [], []
    for role, logps, w, soft in zip(batch.role.tolist(), real(batch, batch.logps), weights, softs, strict=True):
        imitated = (1 - share) if role == POSITIVE else 0
        terms = [weight * (share * s - imitated * x) for x, weight, s in zip(logps, w, soft, strict=True)]
        losses.append(sum(terms) / len(logps))
        slopes.append([-imitated * weight / len(logps) for weight in w])
    return losses, slopes


def test_values_by_hand():
    """At the peak, alpha 1/4. Good p = 1/2, 1/4, S 0.2 and 0.6: 3/4 * 1.0397208 + 1/4 * 0.4 = 0.8797906.

    Bad, S 0.8 and 0.4: 1/4 * 0.6 = 0.15, and no slope along its own tokens. Along S: 1/4 / 2 a token.
    """
    batch = bare(tiny.batch([(POSITIVE, [HALF, QUARTER]), (NEGATIVE, [HALF, HALF])]))
    soft = torch.tensor([[0.2, 0.6], [0.8, 0.4]], requires_grad=True)
    result = NegativeDistillation(alpha=0.25)(given(batch, soft))
    assert_found(result.losses, batch, [0.8797906, 0.15], [[-0.375, -0.375], [0.0, 0.0]])
    assert torch.autograd.grad(result.losses.sum(), soft)[0].tolist() == [[0.125, 0.125], [0.125, 0.125]]
    assert result.metrics["soft_unlikelihood/negative"].tolist() == pytest.approx([0.6])


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.5, 1.0])
def test_equals_a_plain_loop(progress):
    batch = with_token_weights(bare(uneven_pairs(), shift=-4.0))
    batch = given(batch, torch.rand(batch.mask.shape), progress)
    objective = NegativeDistillation(alpha=0.7, peak=0.4)
    assert_found(objective(batch).losses, batch, *loop(batch, objective.share(progress)))


def test_the_bell_by_hand():
    """z = -6, -3, 0, 3, 6 at 0, 1/4, 1/2, 3/4, 1: 4 e^-z / (1 + e^-z)^2 = 0.0098660, 0.1807066, 1, and back.

    It is 4 sigmoid (1 - sigmoid), the paper's lambda 4. With the peak at the end only the rise is left.
    """
    objective = NegativeDistillation()
    wanted = [0.0098660, 0.1807066, 1.0, 0.1807066, 0.0098660]
    assert [objective.share(n / 4) for n in range(5)] == pytest.approx(wanted, abs=1e-7)
    for z in (-6.0, -3.0, 1.5):
        sigmoid = 1 / (1 + math.exp(-z))
        assert objective.share(0.5 * (z / 6 + 1)) == pytest.approx(4 * sigmoid * (1 - sigmoid))
    late = NegativeDistillation(alpha=0.5, peak=1.0)
    assert [late.share(n) for n in (0.0, 0.5, 1.0)] == pytest.approx([0.0049330, 0.0903533, 0.5], abs=1e-7)
    assert {NegativeDistillation(alpha=0.3, steepness=0).share(n / 7) for n in range(8)} == {0.3}
    assert NegativeDistillation(peak=1e-3, steepness=100).share(1.0) == 0.0  # far beyond the peak: no overflow


def test_soft_unlikelihood_and_its_gradient_by_hand():
    """p = (1/2, 1/4, 1/4), N = (1/5, 4/5, 0): log(2) / 5 + 4 log(4/3) / 5 = 0.3687750.

    Along z: p_j (N_j / (1 - p_j) - s), s = sum_v N_v p_v / (1 - p_v) = 1/5 + 4/15 = 7/15:
    1/2 (2/5 - 7/15) = -1/30; 1/4 (16/15 - 7/15) = 3/20; 1/4 (0 - 7/15) = -7/60.
    """
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    teacher = torch.tensor([[0.2, 0.8, 0.0]])
    read = extra("soft_unlikelihood", None, k=0, seed=0, step=0, teacher=lambda at: teacher[at])
    found = read(logits, slice(0, 1))
    assert found.tolist() == pytest.approx([0.3687750], abs=1e-6)
    slopes = torch.autograd.grad(found.sum(), logits)[0][0].tolist()
    assert slopes == pytest.approx([-1 / 30, 3 / 20, -7 / 60], abs=1e-6)


def test_a_teacher_that_says_one_token_is_unlikelihood():
    """With all of N on the response's own tokens, `bad` is unlikelihood's."""
    batch = bare(uneven_pairs(), shift=-4.0)
    logps = batch.logps[batch.mask].detach()  # (M,)
    logits = torch.stack([logps, torch.log1p(-logps.exp())], dim=-1)  # the token, and all others
    read = extra("soft_unlikelihood", None, k=0, seed=0, step=0, teacher=lambda at: torch.tensor([[1.0, 0.0]]))
    soft = torch.zeros(batch.mask.shape).masked_scatter(batch.mask, read(logits, slice(0, len(logits))))
    losses = NegativeDistillation(alpha=1.0)(given(batch, soft)).losses
    expected = load("unlikelihood")()(batch).losses
    torch.testing.assert_close(losses[batch.role == NEGATIVE], expected[batch.role == NEGATIVE])


def test_a_certain_token_gives_a_finite_push():
    """log p is not taken above -1e-6: 13.8155106 from there on, without a gradient."""
    logits = torch.tensor([[50.0, 0.0]], requires_grad=True)
    read = extra("soft_unlikelihood", None, k=0, seed=0, step=0, teacher=lambda at: torch.tensor([[1.0, 0.0]]))
    found = read(logits, slice(0, 1))
    assert found.item() == pytest.approx(13.8155106, abs=1e-3)
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_one_role_may_be_missing(role):
    batch = given(bare(tiny.batch([(role, [HALF, QUARTER])], [(role, [HALF])])), torch.tensor([[0.1, 0.2], [0.3, 0.0]]))
    result = NegativeDistillation(alpha=0.4)(batch)
    assert_found(result.losses, batch, *loop(batch, 0.4))


def test_negatives_need_not_be_read():
    assert NegativeDistillation().roles() == {POSITIVE, NEGATIVE}
    assert NegativeDistillation(on_negatives=False).roles() == {POSITIVE}
