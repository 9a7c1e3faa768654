"""PMPO against numbers worked out by hand and a plain loop, with roles missing and with weights."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch, load
from align.objectives._units import unit_weights
from tests import tiny
from tests.objectives.loops import bare, gradient, in_two_parts, uneven_responses

PMPO = load("pmpo")


def by_loop(batch: Batch, alpha: float, beta: float) -> tuple[list[float], list[list[float]]]:
    """Losses by prompt and the gradient of their sum, with nothing but lists."""
    logps, ref_logps, mask = batch.logps.tolist(), batch.ref_logps.tolist(), batch.mask.tolist()
    slopes = {POSITIVE: -alpha, NEGATIVE: 1 - alpha, SAMPLE: -beta}
    rows, losses = list(zip(batch.prompt.tolist(), batch.role.tolist(), strict=True)), []
    grads = [[0.0] * len(row) for row in mask]
    for prompt in sorted(set(batch.prompt.tolist())):
        loss = 0.0
        for role, slope in slopes.items():
            group = [n for n, row in enumerate(rows) if row == (prompt, role)]
            for n in group:
                tokens = zip(logps[n], ref_logps[n], mask[n], strict=True)
                score = sum(p - (r if role == SAMPLE else 0) for p, r, real in tokens if real)
                loss += slope * score / len(group)
                grads[n] = [slope / len(group) * real for real in mask[n]]
        losses.append(loss)
    return losses, grads


def hand() -> Batch:
    """Positives -1 - 0.5 = -1.5 and -2.5, a negative -3, samples -1 and -4 that the reference gives -0.5 and -3."""
    batch = bare(
        tiny.batch(
            [(POSITIVE, [-1.0, -0.5]), (NEGATIVE, [-3.0]), (POSITIVE, [-2.5]), (SAMPLE, [-1.0]), (SAMPLE, [-2.0, -2.0])]
        )
    )
    ref_logps = torch.tensor([[-9.0, -9.0], [-9.0, 0.0], [-9.0, 0.0], [-0.5, 0.0], [-1.0, -2.0]])
    return dataclasses.replace(batch, ref_logps=ref_logps)


def test_values_by_hand():
    """alpha 0.25, beta 2: -0.25 * (-1.5 - 2.5) / 2 + 0.75 * -3 + 2 * (0.5 + 1) / 2 = 0.5 - 2.25 + 1.5 = -0.25.

    Slopes: -0.25 / 2 on each positive, 0.75 on the negative, -2 / 2 on each sample. Only samples see the reference.
    """
    batch = hand()
    result = PMPO(alpha=0.25, beta=2.0)(batch)
    assert result.losses.tolist() == pytest.approx([-0.25], abs=1e-6)
    assert result.metrics["kl_estimate"].tolist() == pytest.approx([0.75], abs=1e-6)
    expected = [[-0.125, -0.125], [0.75, 0], [-0.125, 0], [-1, 0], [-1, -1]]
    assert gradient(result.losses, batch).tolist() == expected


@pytest.mark.parametrize("alpha, beta", [(0.5, 1.0), (0.2, 0.4), (1.0, 0.0)])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_plain_loop(alpha, beta, seed):
    """1, 2 and 3 samples; prompts of both roles, of negatives alone, of a positive alone; unequal lengths."""
    batch = uneven_responses(seed, samples=1)
    assert (batch.role == SAMPLE).sum() == 1 + 2 + 3
    result = PMPO(alpha=alpha, beta=beta)(batch)
    losses, grads = by_loop(batch, alpha, beta)
    assert result.losses.tolist() == pytest.approx(losses, rel=1e-5, abs=1e-5)
    torch.testing.assert_close(gradient(result.losses, batch), torch.tensor(grads))


@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_a_missing_role_leaves_its_term_out(role):
    """From the batch by hand: positives alone -0.25 * -2 = 0.5 and 1.5 of the KL; negatives alone -2.25 and 1.5.

    The weights stay alpha and 1 - alpha: nothing is renormalised.
    """
    batch = hand()
    keep = (batch.role == role) | (batch.role == SAMPLE)
    fields = {name: getattr(batch, name)[keep] for name in ("logps", "ref_logps", "mask", "role", "prompt")}
    alone = Batch(**fields, pairs=torch.zeros(0, 2, dtype=torch.long))
    expected = 0.5 + 1.5 if role == POSITIVE else -2.25 + 1.5
    assert PMPO(alpha=0.25, beta=2.0)(alone).losses.tolist() == pytest.approx([expected], abs=1e-6)


def test_without_samples_nothing_would_hold_the_policy():
    batch = hand()
    keep = batch.role != SAMPLE
    fields = {name: getattr(batch, name)[keep] for name in ("logps", "ref_logps", "mask", "role", "prompt")}
    with pytest.raises(ValueError, match="no response of role 0"):
        PMPO()(Batch(**fields, pairs=torch.zeros(0, 2, dtype=torch.long)))


def test_example_weights_within_a_role_and_of_the_prompt():
    """Positives weighed 3 and 1: mean (3 * -1.5 - 2.5) / 4 = -1.75, so the loss is 0.4375 - 2.25 + 1.5 = -0.3125.

    Samples carry no weight, whatever stands there. The trainer weighs the prompt by (3 + 2 + 1) / 3 = 2.
    """
    batch = dataclasses.replace(hand(), weight=torch.tensor([3.0, 2.0, 1.0, 7.0, 1.0]))
    assert PMPO(alpha=0.25, beta=2.0)(batch).losses.tolist() == pytest.approx([-0.3125], abs=1e-6)
    assert unit_weights(batch, PMPO.normalize_by).tolist() == [2.0]


def test_weightless_responses_are_finite():
    batch = dataclasses.replace(hand(), weight=torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0]))
    assert PMPO(alpha=0.25, beta=2.0)(batch).losses.tolist() == pytest.approx([1.5], abs=1e-6)
    assert unit_weights(batch, PMPO.normalize_by).tolist() == [0.0]


def test_weights_of_tokens_enter_all_sums():
    batch = dataclasses.replace(hand(), token_weight=torch.full((5, 2), 0.5))
    assert PMPO(alpha=0.25, beta=2.0)(batch).losses.tolist() == pytest.approx([-0.125], abs=1e-6)


def test_negatives_alone_are_held_only_by_enough_kl():
    """Where the sample is the negative itself its slope is 1 - alpha - beta: it comes back up for beta > 1 - alpha."""
    batch = tiny.batch([(NEGATIVE, [0.3]), (SAMPLE, [0.3])])
    for beta, sign in ((0.4, 1), (1.0, -1)):
        slope = gradient(PMPO(alpha=0.5, beta=beta)(batch).losses, batch).sum().item()
        assert slope == pytest.approx(0.5 - beta, abs=1e-6) and slope * sign > 0


def test_prompts_do_not_see_each_other():
    batch = uneven_responses(samples=2)
    parts = [PMPO()(part).losses for part in in_two_parts(PMPO(), batch, 1)]
    torch.testing.assert_close(torch.cat(parts), PMPO()(batch).losses)
