"""Margins of pairs by what was learned from other pairs, and which of them say that a label is wrong.

Confident learning (Northcutt et al., 2021, https://arxiv.org/abs/1911.00068) asks for out-of-fold predictions. Here
they are a linear probe's, on differences of features (positive minus negative): ridge regression without a constant to
the target 1, its strength chosen by the leave-one-out error on its own rows. The features cost one pass of the model
over all answers; the probes cost seconds, whatever the number of folds, where training the model itself would cost a
run for each. What is lost: the features do not adapt to the rows.

Folds are cut by prompt. Each **copy** has folds of its own, and each of its probes learns from a random four fifths of
the other folds: copies agree where the finding does not hang on a few rows. `align.data.flips` sets the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from align.data.flips import likely_flipped

_SUBSAMPLE = 0.8
_STRENGTHS = 10.0 ** np.arange(-4, 2.5, 0.5)  # of the ridge, times the mean square of the singular values


class Found(NamedTuple):
    """What the copies say of each of U pairs."""

    margins: np.ndarray  # (U,) mean over copies, in units of the target: 1 as labelled, -1 the other way round
    doubts: np.ndarray  # (U,) share of the copies that call the label wrong
    thresholds: np.ndarray  # (copies,)


def margins(differences: np.ndarray, prompts: Sequence[str], *, folds: int, copies: int, seed: int) -> Found:
    """`differences` (U, F): features of positives minus features of negatives; `prompts` names the prompt of each.

    Raises ValueError where pairs cannot be told apart.
    """
    if not (differences.std(0) > 0).any():
        raise ValueError("all pairs are equal to the model")
    names = sorted(set(prompts))
    numbers = {name: number for number, name in enumerate(names)}
    index = np.array([numbers[one] for one in prompts])  # (U,)
    found = np.zeros((copies, len(differences)))
    for copy in range(copies):
        draw = np.random.default_rng([seed, copy])
        fold_of = draw.permutation(len(names)) % folds  # of each prompt
        for fold in range(folds):
            held_out = fold_of[index] == fold
            chosen = ~held_out & (draw.random(len(names)) < _SUBSAMPLE)[index]
            if held_out.any():
                found[copy, held_out] = _probe(differences[chosen], differences[held_out])
    marks, thresholds = np.zeros_like(found, dtype=bool), np.zeros(copies)
    for copy, own in enumerate(found):
        flipped, thresholds[copy] = likely_flipped(own)
        marks[copy, flipped] = True
    return Found(found.mean(0), marks.mean(0), thresholds)


def _probe(learned: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(A,) the margins of `asked` (A, F) by a probe that learned from `learned` (L, F)."""
    if not len(learned):
        return np.zeros(len(asked))
    scale = np.sqrt((learned**2).mean(0))
    scale = np.where(scale > 0, scale, 1.0)
    left, singular, right = np.linalg.svd(learned / scale, full_matrices=False)
    target = left.sum(0)  # the left singular vectors times the target 1
    errors = []
    for strength in _STRENGTHS * (singular**2).mean():
        shrink = singular**2 / (singular**2 + strength)
        leverage = (left**2 * shrink).sum(1)
        errors.append(float((((1 - left @ (shrink * target)) / np.maximum(1 - leverage, 1e-9)) ** 2).mean()))
    strength = _STRENGTHS[int(np.argmin(errors))] * (singular**2).mean()
    return asked / scale @ (right.T @ (singular / (singular**2 + strength) * target))
