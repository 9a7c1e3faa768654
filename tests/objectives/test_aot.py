"""AOT against numbers worked out by hand, the plain sorted formula, and DPO (TRL is asked in test_trl_parity.py)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F

from align.objectives import NEGATIVE, POSITIVE, Batch, join_step, load
from tests import tiny
from tests.objectives.loops import gradient, log_ratios, uneven_pairs

AOT, DPO = load("aot"), load("dpo")


def part(batch: Batch, chosen: torch.Tensor) -> Batch:
    """A micro-batch of some prompts, with leaves of its own."""
    row = chosen.long().cumsum(0) - 1
    names = ("logps", "mask", "role", "prompt", "ref_logps")
    pairs = batch.pairs[chosen[batch.pairs[:, 0]]]
    fields = {name: getattr(batch, name).detach()[chosen] for name in names}
    fields["logps"] = fields["logps"].clone().requires_grad_()
    return Batch(**fields, pairs=row[pairs])


def sorted_losses(batch: Batch, objective: AOT) -> torch.Tensor:
    """The plain formula, with gradients through both sides of every comparison."""
    policy, reference = (
        values.where(batch.mask, 0).sum(-1)[batch.pairs] for values in (batch.logps.double(), batch.ref_logps.double())
    )
    if objective.unpaired:
        upper, lower = (policy - reference).unbind(-1)
    else:
        upper, lower = policy[:, 0] - policy[:, 1], reference[:, 0] - reference[:, 1]
    z = objective.beta * (upper.sort().values - lower.sort().values)
    return -(1 - objective.label_smoothing) * F.logsigmoid(z) - objective.label_smoothing * F.logsigmoid(-z)


def test_paired_by_hand():
    """Margins of the policy 2 and 0.5, of the reference 0.5 and 1, beta 1: sorted, 2 - 1 = 1 and 0.5 - 0.5 = 0.

    Losses 0.3132617 and 0.6931472, slopes 0.2689414 and 0.5. DPO would compare 2 with 0.5 and 0.5 with 1.
    """
    batch = tiny.batch([(POSITIVE, [0.0]), (NEGATIVE, [0.0])], [(POSITIVE, [0.0]), (NEGATIVE, [0.0])])
    logps = torch.tensor([[-1.0], [-3.0], [-2.0], [-2.5]], requires_grad=True)
    batch = dataclasses.replace(batch, logps=logps, ref_logps=torch.tensor([[-2.0], [-2.5], [-1.0], [-2.0]]))
    result = AOT(beta=1.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.3132617, 0.6931472], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.5, -0.5], abs=1e-6)  # of the pairs themselves
    assert gradient(result.losses, batch)[:, 0].tolist() == pytest.approx([-0.2689414, 0.2689414, -0.5, 0.5], abs=1e-6)


def test_unpaired_by_hand():
    """Positives 1 and -1, negatives -2 and 0.5, beta 1: sorted, -1 + 2 = 1 and 1 - 0.5 = 0.5.

    Losses 0.3132617 and 0.4740770. Each pair has a response in both comparisons: half the sum, 0.3936693, each.
    Slopes sigmoid(-0.5) = 0.3775407 on 1 and 0.5, sigmoid(-1) = 0.2689414 on -1 and -2: full ones.
    """
    batch = tiny.batch([(POSITIVE, [1.0]), (NEGATIVE, [-2.0])], [(POSITIVE, [-1.0]), (NEGATIVE, [0.5])])
    losses = AOT(beta=1.0, unpaired=True)(batch).losses
    assert losses.tolist() == pytest.approx([0.3936693, 0.3936693], abs=1e-6)
    assert gradient(losses, batch)[:, 0].tolist() == pytest.approx(
        [-0.3775407, 0.2689414, -0.2689414, 0.3775407], abs=1e-6
    )


@pytest.mark.parametrize("unpaired", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_values_by_a_plain_loop(unpaired, smoothing):
    batch = uneven_pairs(spread=2.0)
    ratios, reference = log_ratios(batch), batch.ref_logps.sum(-1).tolist()
    pairs = batch.pairs.tolist()
    lower = [ratios[bad] if unpaired else reference[good] - reference[bad] for good, bad in pairs]
    own = [ratios[good] - ratios[bad] for good, bad in pairs]
    upper = [ratios[good] if unpaired else d + low for (good, _), d, low in zip(pairs, own, lower, strict=True)]
    moved, total = 0, 0.0
    for one, other in zip(sorted(upper), sorted(lower), strict=True):
        z = 0.3 * (one - other)
        total += (1 - smoothing) * math.log(1 + math.exp(-z)) + smoothing * math.log(1 + math.exp(z))
        moved += upper.index(one) != lower.index(other)
    assert moved > 3, "sorting that moves nothing would go unseen"
    losses = AOT(beta=0.3, label_smoothing=smoothing, unpaired=unpaired)(batch).losses
    assert losses.sum().item() == pytest.approx(total, abs=1e-5)


@pytest.mark.parametrize("unpaired", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("prompts", [[[0, 1, 2]], [[0], [1], [2]], [[0, 2], [1]], [[2], [], [0, 1]]])
def test_cutting_the_step_changes_neither_values_nor_gradients(prompts, smoothing, unpaired):
    """Partners in other micro-batches come without gradient, and yet every response has all of its own."""
    batch = uneven_pairs(spread=2.0)
    objective = AOT(beta=0.3, label_smoothing=smoothing, unpaired=unpaired)
    expected = sorted_losses(batch, objective).sum()
    wanted = torch.autograd.grad(expected, batch.logps)[0]
    chosen = [torch.isin(batch.prompt, torch.tensor(some, dtype=torch.long)) for some in prompts]
    parts = [part(batch, rows) for rows in chosen]
    steps, _ = join_step(objective, [objective.collect(micro) for micro in parts], {})
    total = torch.zeros(())
    for micro, rows, step in zip(parts, chosen, steps, strict=True):
        losses = objective(dataclasses.replace(micro, step=step)).losses
        assert len(losses) == len(micro.pairs)
        total = total + losses.sum().detach()
        if len(losses):
            torch.testing.assert_close(gradient(losses, micro), wanted[rows], rtol=1e-5, atol=1e-6)
    assert total.item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("unpaired", [False, True])
def test_ld_alpha_concerns_what_is_sorted(unpaired):
    """0 leaves out what is behind the shorter response of the same pair: the 4 here, and the 9."""
    whole = tiny.batch([(POSITIVE, [1.0, 4.0]), (NEGATIVE, [-0.5])], [(POSITIVE, [2.0]), (NEGATIVE, [1.5, 9.0])])
    short = dataclasses.replace(whole, mask=torch.tensor([[True, False]] * 4))
    losses = AOT(ld_alpha=0.0, unpaired=unpaired)(whole).losses
    torch.testing.assert_close(losses, AOT(unpaired=unpaired)(short).losses)
    assert not torch.allclose(losses, AOT(unpaired=unpaired)(whole).losses)


@pytest.mark.parametrize("unpaired", [False, True])
def test_a_single_pair_is_dpo(unpaired):
    batch = tiny.batch([(POSITIVE, [1.0, 4.0]), (NEGATIVE, [-0.5])])
    one, other = (
        objective(batch).losses for objective in (AOT(label_smoothing=0.1, unpaired=unpaired), DPO(label_smoothing=0.1))
    )
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(gradient(one, batch), gradient(other, batch))


@pytest.mark.parametrize("unpaired", [False, True])
def test_equal_values_share_their_partners(unpaired):
    """At the reference all log-ratios are 0: which of them is whose partner must not matter."""
    batch = tiny.batch(*[[(POSITIVE, [0.0]), (NEGATIVE, [0.0])]] * 3)
    losses = AOT(beta=1.0, unpaired=unpaired)(batch).losses
    torch.testing.assert_close(losses, torch.full((3,), math.log(2)))
    torch.testing.assert_close(gradient(losses, batch)[:, 0], torch.tensor([-0.5, 0.5] * 3))


def test_a_response_in_several_pairs_does_not_care_for_their_order():
    """Its partners are the same whichever row comes first, so that weights of pairs meet the same losses."""
    batch = tiny.batch(
        [(POSITIVE, [0.0]), (NEGATIVE, [2.0]), (NEGATIVE, [-1.0])], [(POSITIVE, [1.0]), (NEGATIVE, [0.5])]
    )
    turned = dataclasses.replace(batch, pairs=batch.pairs.flip(0))
    objective = AOT(unpaired=True)
    torch.testing.assert_close(objective(turned).losses.flip(0), objective(batch).losses)
    assert objective(batch).losses[0] != objective(batch).losses[1]


def test_unpaired_is_finite_far_from_the_reference():
    batch = tiny.batch([(POSITIVE, [1e5]), (NEGATIVE, [-1e5])], [(POSITIVE, [-1e5]), (NEGATIVE, [1e5])])
    losses = AOT(unpaired=True)(batch).losses
    assert losses.isfinite().all() and gradient(losses, batch).isfinite().all()


def test_wpo_does_not_exist_here():
    with pytest.raises(TypeError):
        AOT(wpo=True)
    assert not AOT().has_stop_gradient and AOT(unpaired=True).has_stop_gradient
