"""Which texts say the same, and which do not."""

from __future__ import annotations

import pytest

from align.negatives.meaning import NON_COMMITTAL, result_of, same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("It is 1/2 of it.", "it is 0.5 of it"), ("3+4=7", "4 + 3 = 7"), ("a*b*c", "c*a*b"), ("8/2", "4"),
        ("He isn't not happy", "he is happy"), ("It is not uncommon.", "It is common"), ("1,000 hrs", "1000 hours"),
        ("John and Mary came", "Mary and John came"), ("two cats", "2 cats"), ("You can't", "you cannot"),
        ("It's the  dog!", "it's a dog"),
    ],
)  # fmt: skip
def test_the_same(one, other):
    assert same(one, other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3-4", "4-3"), ("Paris is big", "Paris is not big"), ("A: 5", "A: 6"), ("2*3+4", "2*4+3"), ("1/2", "2"),
        ("It is not usual", "It is usual"), ("1/0", "1"), ("two cats", "three cats"), ("-4", "4"),
        ("John, not Mary", "Mary, not John"),
    ],
)  # fmt: skip
def test_not_the_same(one, other):
    assert not same(one, other)


def test_answers_to_anything():
    assert NON_COMMITTAL.fullmatch("I have no comment.") and NON_COMMITTAL.fullmatch("It depends")
    assert NON_COMMITTAL.fullmatch("I don't know for sure")
    assert not NON_COMMITTAL.fullmatch("I know him")


@pytest.mark.parametrize(
    ("text", "result"),
    [("3*60=180 miles, and 45 more", 45), ("x is 7\nA: 1,163", 1163), ("The answer is $57.50.", 57.5), ("#### 5", 5),
     ("It has 4 legs.", None), ("Born in 1950", None), ("The answer is hidden in the 3rd of many rows", None)],
)  # fmt: skip
def test_results(text, result):
    assert result_of(text) == result
