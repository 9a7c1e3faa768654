"""Flips of answers: the four kinds, their rates, and what is refused."""

from __future__ import annotations

import pytest

from align.evaluation.flips import flips


def test_counts_and_rates():
    before = [True, True, True, True, False, False, False, True]
    after = [True, False, True, False, True, False, False, False]
    found = flips(before, after)
    assert found["questions"] == 8
    kinds = ("right_to_right", "right_to_wrong", "wrong_to_right", "wrong_to_wrong")
    assert [found[kind] for kind in kinds] == [2, 3, 1, 2]
    assert found["negative_flip_rate"] == 3 / 8 and found["positive_flip_rate"] == 1 / 8
    assert found["of_wrong_after"] == 3 / 5
    assert found["p"] == pytest.approx(2 * (1 + 4) / 16)  # 1 or fewer of 4 fair coins, two-sided


def test_nothing_wrong_afterwards():
    found = flips([False, True], [True, True])
    assert found["of_wrong_after"] == 0 and found["negative_flip_rate"] == 0 and found["p"] == 1


def test_answers_to_other_questions_are_refused():
    for before, after in (([], []), ([True], [True, False])):
        with pytest.raises(ValueError, match="not to the same questions"):
            flips(before, after)
