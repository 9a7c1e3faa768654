"""The nearest prompts: the measure by hand, and that the order of rows has no say."""

from __future__ import annotations

import math

import pytest

from align.data.examples import Example
from align.negatives import similar_prompts
from align.negatives.similar_prompts import SimilarPrompts, text_of

TEXTS = ["red cat", "red cat", "red dog", "blue dog", "green bird"]
ROWS = [Example(text, (), "test", f"rows:{number}") for number, text in enumerate(TEXTS)]
KEY = {row.prompt: row.key for row in ROWS}


def test_the_measure_by_hand():
    """4 different prompts; red is in 2, cat in 1, dog in 2: weights log 2, log 4, log 2.

    (red, cat) = (1, 2) / sqrt 5, (red, dog) = (1, 1) / sqrt 2: they share red, 1 / sqrt 10. (dog, red) and (dog, blue):
    1 / sqrt 2 * 1 / sqrt 5.
    """
    found = SimilarPrompts(ROWS).nearest(KEY["red dog"], 5)
    assert sorted(key for _, key in found) == sorted([KEY["red cat"], KEY["blue dog"]])
    assert [similarity for similarity, _ in found] == pytest.approx([1 / math.sqrt(10)] * 2)
    assert SimilarPrompts(ROWS).nearest(KEY["green bird"], 5) == []


def test_order_of_rows_has_no_say():
    one, other = SimilarPrompts(ROWS), SimilarPrompts(ROWS[::-1])
    assert all(one.nearest(key, 3) == other.nearest(key, 3) for key in KEY.values())


def test_words_of_many_prompts_do_not_make_neighbours(monkeypatch):
    monkeypatch.setattr(similar_prompts, "SPREAD", 1)
    assert SimilarPrompts(ROWS).nearest(KEY["red dog"], 5) == []


def test_prompts_of_messages():
    assert text_of((("tools", "[]"), ("system", "Be kind."), ("user", "Hi"))) == "Be kind.\nHi"
