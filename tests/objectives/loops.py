"""What the tests of objectives share: uneven batches, and losses and gradients by plain loops."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch, Objective, join_step
from tests import tiny


def gradient(losses: torch.Tensor, batch: Batch) -> torch.Tensor:
    """(N, T) the gradient of the sum of the losses."""
    return torch.autograd.grad(losses.sum(), batch.logps, retain_graph=True)[0]


def uneven_pairs(seed: int = 7, spread: float = 1.0) -> Batch:
    """Prompts with 1, 6 and 3 pairs in no particular order, responses of 1 to 6 tokens."""
    draw = random.Random(seed)
    prompts = []
    for positives, negatives in ((1, 1), (2, 3), (3, 1)):
        roles = [POSITIVE] * positives + [NEGATIVE] * negatives
        draw.shuffle(roles)
        prompts.append([(role, [draw.gauss(0, spread) for _ in range(draw.randint(1, 6))]) for role in roles])
    batch = tiny.batch(*prompts, seed=seed)
    assert len(batch.pairs) == 1 + 6 + 3
    return batch


def log_ratios(batch: Batch) -> list[float]:
    """The sum of the log-ratios of each response's tokens."""
    rows = zip(batch.logps.tolist(), batch.ref_logps.tolist(), batch.mask.tolist(), strict=True)
    return [sum(p - r for p, r, real in zip(*row, strict=True) if real) for row in rows]


PairFormula = Callable[[float, float], tuple[float, float, float]]


def by_pairs(batch: Batch, formula: PairFormula, per_token: bool = False) -> tuple[list[float], list[list[float]]]:
    """Losses by pair and the gradient of their sum.

    `formula` makes of the two log-ratios of a pair (their means over the tokens under `per_token`) its loss and the
    loss's slopes along the two.
    """
    ratios, mask = log_ratios(batch), batch.mask.tolist()
    length = [sum(row) if per_token else 1 for row in mask]
    losses, grads = [], [[0.0] * len(row) for row in mask]
    for good, bad in batch.pairs.tolist():
        loss, *slopes = formula(ratios[good] / length[good], ratios[bad] / length[bad])
        losses.append(loss)
        for n, slope in zip((good, bad), slopes, strict=True):
            grads[n] = [before + slope / length[n] * real for before, real in zip(grads[n], mask[n], strict=True)]
    return losses, grads


def assert_loop(objective: Objective, formula: PairFormula, per_token: bool = False, spread: float = 1.0) -> None:
    """The objective on uneven pairs gives the losses and gradients of `by_pairs`."""
    batch = uneven_pairs(spread=spread)
    losses = objective(batch).losses
    expected, grads = by_pairs(batch, formula, per_token)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, wanted in zip(gradient(losses, batch).tolist(), grads, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def bare(batch: Batch, shift: float = 0.0) -> Batch:
    """The batch for objectives without a reference: its log-ratios, plus `shift` a token, become the log-probs."""
    logps = (batch.logps - batch.ref_logps + shift * batch.mask).detach().requires_grad_()
    return dataclasses.replace(batch, logps=logps, ref_logps=torch.zeros_like(logps))


def assert_bare_loop(objective: Objective, formula: PairFormula, per_token: bool = False) -> None:
    """The objective on uneven pairs gives the losses and gradients of `by_pairs` on log-probs instead of log-ratios."""
    batch = bare(uneven_pairs(), shift=-3.0)
    losses = objective(dataclasses.replace(batch, ref_logps=None)).losses
    expected, grads = by_pairs(batch, formula, per_token)
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, wanted in zip(gradient(losses, batch).tolist(), grads, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def in_two_parts(objective: Objective, batch: Batch, cut: int) -> list[Batch]:
    """The prompts before `cut` and the others, as two micro-batches of a step, the way the trainer couples them."""
    parts = []
    for chosen in (batch.prompt < cut, batch.prompt >= cut):
        rows = chosen.nonzero()[:, 0].tolist()
        pairs = [[rows.index(n) for n in pair] for pair in batch.pairs.tolist() if pair[0] in rows]
        given = ("logps", "mask", "role", "prompt", "ref_logps", "reward", "weight")
        fields = {name: getattr(batch, name)[chosen] for name in given if getattr(batch, name) is not None}
        copies = None if batch.ema_logps is None else batch.ema_logps[:, chosen]
        parts.append(Batch(**fields, pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2), ema_logps=copies))
    steps, _ = join_step(objective, [objective.collect(part) for part in parts], {})
    return [dataclasses.replace(part, step=step) for part, step in zip(parts, steps, strict=True)]


def assert_cut_does_not_matter(objective: Objective, whole: Batch, cut: int) -> None:
    """The losses of a step, and their gradients, are the same however its prompts fall into two micro-batches."""
    losses = torch.cat([objective(part).losses for part in in_two_parts(objective, whole, cut)])
    torch.testing.assert_close(losses, objective(whole).losses)
    torch.testing.assert_close(gradient(losses, whole), gradient(objective(whole).losses, whole))


def uneven_responses(seed: int = 5, spread: float = 1.0, counts=((2, 1), (0, 3), (1, 0)), samples: int = 0) -> Batch:
    """Prompts with so many positives and negatives, one with negatives alone and one with a positive alone.

    Responses of 1 to 6 tokens in no particular order, `samples` to each prompt, one more to each next.
    """
    draw = random.Random(seed)
    prompts = []
    for place, (positives, negatives) in enumerate(counts):
        roles = [POSITIVE] * positives + [NEGATIVE] * negatives + [SAMPLE] * (samples and samples + place)
        draw.shuffle(roles)
        prompts.append([(role, [draw.gauss(0, spread) for _ in range(draw.randint(1, 6))]) for role in roles])
    return tiny.batch(*prompts, seed=seed)


ResponseFormula = Callable[[int, float], tuple[float, float]]


def assert_responses_loop(
    objective: Objective, batch: Batch, formula: ResponseFormula, per_token: bool = False, only: int | None = None
) -> None:
    """The losses of single responses, and the gradient of their sum, are those of a plain loop over the responses.

    `formula` makes of a role and a log-ratio (its mean over the tokens under `per_token`) a loss and its slope.
    Responses of other roles than `only` have no loss.
    """
    losses = objective(batch).losses
    expected, grads = [], []
    for ratio, role, mask in zip(log_ratios(batch), batch.role.tolist(), batch.mask.tolist(), strict=True):
        length = sum(mask) if per_token else 1
        loss, slope = formula(role, ratio / length) if only in (None, role) else (None, 0.0)
        expected += [] if loss is None else [loss]
        grads.append([slope / length * real for real in mask])
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    for found, wanted in zip(gradient(losses, batch).tolist(), grads, strict=True):
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-6)


def with_behavior(batch: Batch) -> Batch:
    """The batch with its reference as the policy that wrote the responses, and no reference."""
    return dataclasses.replace(batch, behavior_logps=batch.ref_logps, ref_logps=None)


def with_token_weights(batch: Batch, seed: int = 3) -> Batch:
    """The batch with a weight between 0.5 and 1.5 for each token, padding too."""
    draws = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed))
    return dataclasses.replace(batch, token_weight=0.5 + draws)


def real(batch: Batch, values: torch.Tensor | None, default: float = 0.0) -> list[list[float]]:
    """For each response, the values (N, T) of its tokens, without padding."""
    values = torch.full(batch.mask.shape, default) if values is None else values
    return [row[there].tolist() for row, there in zip(values.detach(), batch.mask, strict=True)]


def assert_found(losses: torch.Tensor, batch: Batch, expected: list[float], slopes: list[list[float]]) -> None:
    """The losses are as expected, and so is the gradient of their sum at each token (0 on padding)."""
    assert losses.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    found = gradient(losses, batch)
    assert (found[~batch.mask] == 0).all()
    for row, wanted in zip(real(batch, found), slopes, strict=True):
        assert row == pytest.approx(wanted, rel=1e-4, abs=1e-6)
