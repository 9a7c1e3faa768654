"""Pairs that are probably labelled the wrong way round, by what a model thinks of them.

Confident learning (Northcutt et al., 2021, https://arxiv.org/abs/1911.00068), on pairs: a pair's margin is how much
likelier, a token, the model finds the positive than the negative. Each pair is seen in both directions, so that the two
classes "as labelled" and "flipped" have the same distribution up to the sign, and one threshold does for both: the mean
margin of the pairs that the model agrees with. A pair is called flipped if the model is as sure of the
contrary: its margin is below minus that threshold.

What it cannot know: a model that prefers the wrong answer for reasons of its own (length, fluency, its
training data) calls right labels flipped. Means a token take out most of length. Look before you drop.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEAST_PAIRS = 20  # below, a mean margin says little


def likely_flipped(margins: Sequence[float]) -> tuple[list[int], float]:
    """(indices of the pairs that are likely flipped, the surest first; the threshold in nats a token)."""
    values = np.asarray(margins, dtype=np.float64)
    agreed = values[values > 0]
    if len(values) < LEAST_PAIRS or not len(agreed):
        return [], float("nan")
    threshold = float(agreed.mean())
    found = np.flatnonzero(values < -threshold)
    return [int(index) for index in found[np.argsort(values[found])]], threshold
