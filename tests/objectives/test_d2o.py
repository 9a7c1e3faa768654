"""D2O against numbers worked out by hand, a plain loop, and DPO."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch, load
from tests import tiny

D2O, DPO = load("d2o"), load("dpo")


def uneven(seed: int = 0) -> Batch:
    """Prompts with 1, 3 and 2 samples and 2, 1 and 3 negatives, in no particular order, of 1 to 6 tokens."""
    draw = random.Random(seed)

    def response(role: int) -> tuple[int, list[float]]:
        return role, [draw.gauss(0, 1) for _ in range(draw.randint(1, 6))]

    prompts = []
    for samples, negatives in ((1, 2), (3, 1), (2, 3)):
        responses = [response(role) for role in [SAMPLE] * samples + [NEGATIVE] * negatives]
        draw.shuffle(responses)
        prompts.append(responses)
    return tiny.batch(*prompts, seed=seed)


def gradient(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    return torch.autograd.grad(losses.sum(), batch.logps, retain_graph=True)[0]


def by_loop(batch: Batch, alpha: float, beta: float) -> tuple[list[float], list[list[float]]]:
    """Losses by prompt and the gradient of their sum, with nothing but `math`."""
    logps, ref_logps = batch.logps.tolist(), batch.ref_logps.tolist()
    rows, losses = list(zip(batch.prompt.tolist(), batch.role.tolist(), batch.mask.tolist(), strict=True)), []
    grads = [[0.0] * len(mask) for _, _, mask in rows]
    for prompt in sorted(set(batch.prompt.tolist())):
        ratios: dict[int, list[float]] = {SAMPLE: [], NEGATIVE: []}
        for n, (which, role, mask) in enumerate(rows):
            if which == prompt:
                ratios[role].append(sum(p - r for p, r, real in zip(logps[n], ref_logps[n], mask, strict=True) if real))
        z = beta * sum(ratios[SAMPLE]) / len(ratios[SAMPLE]) - alpha * sum(ratios[NEGATIVE]) / len(ratios[NEGATIVE])
        losses.append(math.log(1 + math.exp(-z)))
        share = 1 / (1 + math.exp(z))
        slopes = {SAMPLE: -share * beta / len(ratios[SAMPLE]), NEGATIVE: share * alpha / len(ratios[NEGATIVE])}
        for n, (which, role, mask) in enumerate(rows):
            if which == prompt:
                grads[n] = [slopes[role] if real else 0.0 for real in mask]
    return losses, grads


def test_values_by_hand():
    """Two samples with log-ratios 0.2 and -0.4, a negative with 1.0 = 0.7 + 0.3; alpha 0.5, beta 2.

    z = 2 * (0.2 - 0.4) / 2 - 0.5 * 1.0 = -0.2 - 0.5 = -0.7
    loss = -log sigmoid(-0.7) = log(1 + e^0.7) = log(3.0137527) = 1.1031860
    prompt_weight = sigmoid(0.7) = 2.0137527 / 3.0137527 = 0.6681878
    gradient: each token of a sample -0.6681878 * 2 / 2, each token of the negative +0.6681878 * 0.5
    """
    batch = tiny.batch([(SAMPLE, [0.2]), (NEGATIVE, [0.7, 0.3]), (SAMPLE, [-0.1, -0.2, -0.1])])
    result = D2O(alpha=0.5, beta=2.0)(batch)
    assert result.losses.tolist() == pytest.approx([1.1031860], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([-0.7], abs=1e-6)
    assert result.metrics["prompt_weight"].tolist() == pytest.approx([0.6681878], abs=1e-6)
    assert result.metrics["accuracy"].tolist() == [0.0]
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.6681878, 0, 0], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.3340939, 0.3340939, 0], abs=1e-6)
    assert found[2].tolist() == pytest.approx([-0.6681878] * 3, abs=1e-6)


def test_untrained_policy_by_hand():
    """Policy and reference equal: z = 0, loss = log 2 = 0.6931472, weight 1/2, so the defaults push with 0.05."""
    batch = tiny.batch([(SAMPLE, [0.0, 0.0]), (NEGATIVE, [0.0])])
    result = D2O()(batch)
    assert result.losses.tolist() == pytest.approx([0.6931472], abs=1e-6)
    assert gradient(result.losses, batch).tolist() == [pytest.approx([-0.05, -0.05]), pytest.approx([0.05, 0.0])]


def test_several_negatives_enter_as_their_mean_by_hand():
    """Samples: mean log-ratio 0.6. Negatives -1, 0 and 4: mean 1. alpha = beta = 1: z = 0.6 - 1 = -0.4.

    loss = log(1 + e^0.4) = log(2.4918247) = 0.9130152; sigmoid(0.4) = 0.5986877, of which each negative gets a third.
    A second prompt, z = 2 - (-1) = 3, loss = log(1 + e^-3) = 0.0485874, is a unit of its own.
    """
    batch = tiny.batch(
        [(NEGATIVE, [-1.0]), (NEGATIVE, [0.0]), (NEGATIVE, [4.0]), (SAMPLE, [0.6])],
        [(SAMPLE, [2.0]), (NEGATIVE, [-1.0])],
    )
    result = D2O(alpha=1.0, beta=1.0)(batch)
    assert result.losses.tolist() == pytest.approx([0.9130152, 0.0485874], abs=1e-6)
    assert gradient(result.losses[0], batch)[:, 0].tolist() == pytest.approx(
        [0.1995626, 0.1995626, 0.1995626, -0.5986877, 0, 0], abs=1e-6
    )


@pytest.mark.parametrize("alpha, beta", [(0.1, 0.1), (1.3, 0.4), (0.2, 2.0)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_loop(alpha, beta, seed):
    """Unequal numbers of samples (each prompt divides by its own K), several negatives, unequal lengths."""
    batch = uneven(seed)
    result = D2O(alpha=alpha, beta=beta)(batch)
    losses, grads = by_loop(batch, alpha, beta)
    assert result.losses.tolist() == pytest.approx(losses, rel=1e-5, abs=1e-6)
    for found, expected in zip(gradient(result.losses, batch).tolist(), grads, strict=True):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.5])
def test_one_sample_and_alpha_equal_beta_is_dpo(beta):
    """With the sample as the positive: same value, same gradient, for every prompt."""
    draw = random.Random(0)
    prompts = [
        [(role, [draw.gauss(0, 1) for _ in range(draw.randint(1, 5))]) for role in (SAMPLE, NEGATIVE)] for _ in range(5)
    ]
    d2o = tiny.batch(*prompts)
    dpo = tiny.batch(*[[(POSITIVE if role == SAMPLE else role, h) for role, h in prompt] for prompt in prompts])
    assert torch.equal(d2o.logps, dpo.logps) and len(dpo.pairs) == 5
    ours, theirs = D2O(alpha=beta, beta=beta)(d2o).losses, DPO(beta=beta)(dpo).losses
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gradient(ours, d2o), gradient(theirs, dpo), rtol=1e-6, atol=1e-7)
    assert ours.std() > 0.1, "prompts alike would prove little"


def test_beta_zero_leaves_the_negative_alone():
    """loss = log(1 + e^(alpha h)): for alpha 0.5 and h = 2 that is log(1 + e) = 1.3132617. Samples feel nothing."""
    batch = tiny.batch([(SAMPLE, [3.0, -7.0]), (SAMPLE, [50.0]), (NEGATIVE, [1.5, 0.5])])
    losses = D2O(alpha=0.5, beta=0.0)(batch).losses
    assert losses.tolist() == pytest.approx([1.3132617], abs=1e-6)
    found = gradient(losses, batch)
    assert (found[:2] == 0).all() and (found[2] > 0).all()


def test_only_log_ratios_enter():
    """The same shift of policy and reference changes nothing, whatever it is for each token."""
    batch = uneven()
    shift = -3 * torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(9)) * batch.mask
    shifted = dataclasses.replace(
        batch, logps=(batch.logps + shift).detach().requires_grad_(), ref_logps=batch.ref_logps + shift
    )
    ours, theirs = D2O()(batch).losses, D2O()(shifted).losses
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(ours, batch), gradient(theirs, shifted), rtol=1e-5, atol=1e-6)


def test_samples_may_have_a_reference_of_their_own():
    """Samples' log-ratio 1, negative's 1, alpha 0.5, beta 2: z = 2 - 0.5 = 1.5, loss log(1 + e^-1.5) = 0.2014133.

    A second reference that finds each of the two sample tokens 0.25 nats likelier: their log-ratio is 0.5,
    z = 1 - 0.5 = 0.5, loss log(1 + e^-0.5) = 0.4740770. One that does so for the negative (two tokens) instead:
    z = 2 - 0.25 = 1.75, loss log(1 + e^-1.75) = 0.1602243.
    """
    batch = tiny.batch([(SAMPLE, [0.4, 0.6]), (NEGATIVE, [0.5, 0.5])])
    objective = D2O(alpha=0.5, beta=2.0)
    other = [dataclasses.replace(batch, ref_logps=batch.ref_logps + 0.25 * (batch.role == r)[:, None]) for r in (0, -1)]
    assert objective(batch).losses.item() == pytest.approx(0.2014133, abs=1e-6)
    assert objective(other[0]).losses.item() == pytest.approx(0.4740770, abs=1e-6)
    assert objective(other[1]).losses.item() == pytest.approx(0.1602243, abs=1e-6)


@pytest.mark.parametrize("left", [SAMPLE, NEGATIVE])
def test_a_prompt_without_samples_or_without_negatives_is_refused(left):
    batch = tiny.batch([(SAMPLE, [0.1]), (NEGATIVE, [0.2])], [(left, [0.3])])
    with pytest.raises(ValueError, match="no response of role"):
        D2O()(batch)


@pytest.mark.parametrize("seed", range(5))
def test_bounded_by_the_mean_of_dpo_losses(seed):
    """log sigmoid is concave: D2O's loss with K samples is at most the mean of K DPO losses, one for each sample."""
    draw = random.Random(seed)
    responses = [(SAMPLE, [draw.gauss(0, 3)]) for _ in range(5)] + [(NEGATIVE, [draw.gauss(0, 3)])]
    d2o = D2O(alpha=0.7, beta=0.7)(tiny.batch(responses)).losses.item()
    dpo = DPO(beta=0.7)(tiny.batch([(role or POSITIVE, h) for role, h in responses])).losses
    assert len(dpo) == 5
    assert d2o < dpo.mean().item() - 1e-3


def test_the_bound_is_met_by_equal_samples():
    batch = [(SAMPLE, [0.3])] * 4 + [(NEGATIVE, [-0.2])]
    d2o = D2O(alpha=0.7, beta=0.7)(tiny.batch(batch)).losses.item()
    dpo = DPO(beta=0.7)(tiny.batch([(role or POSITIVE, h) for role, h in batch])).losses
    assert dpo.tolist() == pytest.approx([d2o] * 4, abs=1e-6)
