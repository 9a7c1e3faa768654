"""Margins of pairs by what was learned from other pairs, and which of them say that a label is wrong.

Confident learning (Northcutt et al., 2021, https://arxiv.org/abs/1911.00068) asks for out-of-fold predictions. Here
they are a linear probe's, on differences of features (positive minus negative): ridge regression without a constant to
the target 1, its strength chosen by the leave-one-out error on its own rows. The features cost one pass of the model
over all answers; the probes cost seconds, whatever the number of folds, where training the model itself would cost a
run for each. What is lost: the features do not adapt to the rows.

Folds are cut by prompt. Each **copy** has folds of its own, and each of its probes learns from a random four fifths of
the other folds: copies agree where the finding does not hang on a few rows.

Margins become probabilities by one scale, fitted to the labels as they are. A pair seen from the other side is an
example of the class "wrong way round", so one threshold does for both classes: the mean probability of the labels as
given. A label is called wrong if the contrary is at least as probable as labels are on average. (The threshold of
`align.data.flips`, for margins without a scale, is the mean of those that agree: it finds at most about half.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_SUBSAMPLE = 0.8
_STRENGTHS = 10.0 ** np.arange(-4, 2.5, 0.5)  # of the ridge, times the mean square of the singular values


class Found(NamedTuple):
    """What the copies say of each of U pairs."""

    margins: np.ndarray  # (U,) mean over copies, in units of the target: 1 as labelled, -1 the other way round
    doubts: np.ndarray  # (U,) share of the copies that call the label wrong
    thresholds: np.ndarray  # (copies,) mean probability of the labels as given


def margins(differences: np.ndarray, prompts: Sequence[str], *, folds: int, copies: int, seed: int) -> Found:
    """`differences` (U, F): features of positives minus features of negatives; `prompts` names the prompt of each.

    Raises ValueError where pairs cannot be told apart, or are by no copy better than by chance.
    """
    if not (differences.std(0) > 0).any():
        raise ValueError("all pairs are equal to the model: their texts do not differ")
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
    marks, thresholds = zip(*(_called_wrong(own) for own in found), strict=True)
    if max(thresholds) <= 0.5:
        raise ValueError("margins agree with no more labels than chance does")
    return Found(found.mean(0), np.mean(marks, 0), np.array(thresholds))


def _called_wrong(margins: np.ndarray) -> tuple[np.ndarray, float]:
    """((U,) bool: whose label is called wrong, the threshold): confident learning on calibrated margins.

    Margins that know nothing of the labels have the scale 0, and call none wrong; the threshold is 1/2 then.
    """
    scale = _scale(margins)
    right = 1 / (1 + np.exp(-scale * margins))  # (U,) probability that the label is right
    threshold = float(right.mean())
    return (1 - right >= threshold) & (margins < 0) & (scale > 0), threshold


def _scale(margins: np.ndarray) -> float:
    """The factor of a logistic model of the labels, at least 0: sum of log sigmoid(factor * margin) is greatest."""
    factor = 0.0
    for _ in range(50):  # Newton's method on a concave function
        wrong = 1 / (1 + np.exp(factor * margins))
        curvature = float((margins**2 * wrong * (1 - wrong)).sum()) + 1e-9
        step = float((margins * wrong).sum()) / curvature
        factor = max(0.0, factor + float(np.clip(step, -5, 5)))
        if abs(step) < 1e-6:
            break
    return factor


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
