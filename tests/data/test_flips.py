"""Likely flipped pairs: planted ones are found among margins like a model's, and few others are called so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from align.data.flips import LEAST_PAIRS, likely_flipped


def test_threshold_by_hand():
    """Agreed margins 1 and 3 (ten times each): mean 2; below -2 is flipped, the surest first."""
    margins = [1.0, 3.0] * 10 + [-1.9, -2.1, -5.0]
    found, threshold = likely_flipped(margins)
    assert threshold == pytest.approx(2.0) and found == [22, 21]


@pytest.mark.parametrize("share", [0.05, 0.2, 0.3])
def test_planted_flips_are_found(share):
    """Margins of a model that is right nine times in ten: normal, mean 1.3, deviation 1."""
    draw = np.random.default_rng(0)
    margins = draw.normal(1.3, 1.0, 2000)
    flipped = draw.random(2000) < share
    margins[flipped] *= -1
    found = set(likely_flipped(margins)[0])
    right = sum(flipped[list(found)])
    assert right / flipped.sum() > 0.35 and right / len(found) > 0.8


def test_few_are_called_flipped_where_none_is():
    draw = np.random.default_rng(1)
    assert len(likely_flipped(draw.normal(1.3, 1.0, 2000))[0]) < 20


def test_too_few_pairs_say_nothing():
    found, threshold = likely_flipped([-9.0] * 3 + [1.0] * (LEAST_PAIRS - 4))
    assert found == [] and math.isnan(threshold)
    assert likely_flipped([-1.0] * 50)[0] == [], "a model that agrees with nothing is no judge"
