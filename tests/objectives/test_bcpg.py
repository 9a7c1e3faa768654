"""BCPG and BCPG-NSA against numbers worked out by hand and a plain loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_found, gradient, real, uneven_pairs, with_token_weights

BCPG = load("bcpg")


def with_labels(batch, seed: int = 2):
    labels = torch.randint(-1, 2, batch.mask.shape, generator=torch.Generator().manual_seed(seed)) * batch.mask
    assert {-1, 0, 1} == set(labels.flatten().tolist())
    return dataclasses.replace(batch, step_label=labels)


def loop(batch, beta: float, tau: float):
    """The slope along token j: -w_j ( A b_j - tau h ) / |y|."""
    rewards, prompts, roles = batch.rewards().tolist(), batch.prompt.tolist(), batch.role.tolist()
    logps, refs, labels = (real(batch, values) for values in (batch.logps, batch.ref_logps, batch.step_label))
    losses, slopes = [], []
    for n, weights in enumerate(real(batch, batch.token_weight, 1.0)):
        group = [reward for reward, prompt in zip(rewards, prompts, strict=True) if prompt == prompts[n]]
        advantage, length = rewards[n] - sum(group) / len(group), len(weights)
        b = [beta if roles[n] == NEGATIVE and label == 1 else 1.0 for label in labels[n]]
        h = sum(w * (x - ref) for w, x, ref in zip(weights, logps[n], refs[n], strict=True))
        gain = advantage * sum(w * part * x for w, part, x in zip(weights, b, logps[n], strict=True))
        losses.append(-(gain - tau / 2 * h**2) / length)
        slopes.append([-w * (advantage * part - tau * h) / length for w, part in zip(weights, b, strict=True)])
    return losses, slopes


def by_hand():
    batch = tiny.batch([(POSITIVE, [0.0, 0.0]), (NEGATIVE, [0.0, 0.0, 0.0])])
    return dataclasses.replace(
        batch,
        logps=torch.tensor([[-1.0, -2.0, 0.0], [-0.5, -1.0, -1.5]], requires_grad=True),
        ref_logps=torch.tensor([[-1.5, -1.9, 0.0], [-0.4, -1.0, -1.2]]),
        step_label=torch.tensor([[1.0, -1.0, 0.0], [1.0, -1.0, 0.0]]),
    )


def test_values_by_hand():
    """Advantages 1 and -1; beta 0.5, tau 0.1.

    Right: h = 0.5 - 0.1 = 0.4: -(-3 - 0.05 * 0.16) / 2 = 1.504; slope -(1 - 0.1 * 0.4) / 2 = -0.48 a token.
    Wrong, its first token good: 0.5 * -0.5 - 1 - 1.5 = -2.75, h = -0.1 - 0.3 = -0.4:
    -(2.75 - 0.05 * 0.16) / 3 = -0.914; slopes (b + 0.1 * -0.4) / 3 = 0.1533333, 0.32, 0.32.
    """
    batch = by_hand()
    result = BCPG(beta=0.5, tau=0.1)(batch)
    assert_found(result.losses, batch, [1.504, -0.914], [[-0.48, -0.48], [0.1533333, 0.32, 0.32]])
    assert result.metrics["advantage/positive"].tolist() == [1.0]


@pytest.mark.parametrize("beta, slope", [(1.0, 0.32), (0.0, -0.0133333), (-0.5, -0.18)])
def test_beta_by_hand(beta, slope):
    """The good token of the wrong answer: (b - 0.04) / 3. At 0 only the hold to the reference is left."""
    batch = by_hand()
    found = gradient(BCPG(beta=beta, tau=0.1)(batch).losses, batch)
    assert found[1].tolist() == pytest.approx([slope, 0.32, 0.32], abs=1e-6)


@pytest.mark.parametrize("beta, tau", [(0.5, 1e-3), (-1.0, 0.3), (1.0, 0.0)])
@pytest.mark.parametrize("given", [True, False])
def test_equals_a_plain_loop(beta, tau, given):
    batch = with_token_weights(with_labels(uneven_pairs()))
    if given:
        reward = torch.randn(len(batch.role), generator=torch.Generator().manual_seed(1))
        batch = dataclasses.replace(batch, reward=reward)
    assert_found(BCPG(beta=beta, tau=tau)(batch).losses, batch, *loop(batch, beta, tau))


@pytest.mark.parametrize("labels", [None, 0, -1])
def test_beta_one_is_bcpg_and_so_are_rows_without_good_steps(labels):
    """Steps that are unjudged or bad are penalised in full, whatever beta."""
    batch = uneven_pairs()
    plain = BCPG(beta=0.5)(batch).losses
    torch.testing.assert_close(BCPG(beta=1.0)(with_labels(batch)).losses, plain)
    if labels is not None:
        given = torch.full(batch.mask.shape, labels)
        torch.testing.assert_close(BCPG(beta=-1.0)(dataclasses.replace(batch, step_label=given)).losses, plain)


def test_labels_of_right_answers_change_nothing():
    batch = uneven_pairs()
    right = (batch.role == POSITIVE)[:, None] & batch.mask
    labelled = dataclasses.replace(batch, step_label=right.long())
    torch.testing.assert_close(BCPG()(labelled).losses, BCPG()(batch).losses)


def test_without_a_difference_in_reward_the_reference_holds():
    """Equal rewards, so no advantage: tau / 2 * h^2 over the length is all. h = 1: 0.5 / 2 = 0.25, slope 1 / 2."""
    batch = tiny.batch([(POSITIVE, [0.4, 0.6]), (NEGATIVE, [0.0])])
    batch = dataclasses.replace(batch, reward=torch.tensor([0.3, 0.3]))
    assert_found(BCPG(tau=1.0)(batch).losses, batch, [0.25, 0.0], [[0.5, 0.5], [0.0]])
