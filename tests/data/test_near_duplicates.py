"""Near-duplicates by shared runs of words: exactly those that comparing each with each finds."""

from __future__ import annotations

import random

import pytest

from align.data import near_duplicates
from align.data.near_duplicates import NearDuplicates, runs, similarity

WORDS = "red green blue black white small large old new far near high low long short fast slow warm cold dry".split()


def test_similarity_by_hand():
    """abcd has runs abc, bcd; abce has abc, bce: one of three."""
    assert similarity(runs("a b c d"), runs("A b, c! e")) == pytest.approx(1 / 3)
    assert similarity(runs("a b c d"), runs("a b c d")) == 1
    assert similarity(runs("a b"), runs("a b")) == 1 and similarity(runs("a b"), runs("b a")) == 0
    assert runs("...") == frozenset()


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 1.0])
def test_the_same_as_comparing_each_with_each(threshold, monkeypatch):
    draw = random.Random(int(threshold * 10))

    def changed(text: str) -> str:
        words = text.split()
        for _ in range(draw.randint(0, 4)):
            words[draw.randrange(len(words))] = draw.choice(WORDS)
        return " ".join(words)

    held = [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(60)]
    others = [changed(draw.choice(held)) for _ in range(300)]
    monkeypatch.setattr(near_duplicates, "MANY", 1000)
    finder = NearDuplicates(threshold)
    for number, text in enumerate(held):
        finder.add(str(number), text)
    hits = 0
    for text in others:
        expected = {str(n) for n, one in enumerate(held) if similarity(runs(one), runs(text)) >= threshold}
        found = finder.match(text)
        assert (found in expected) if expected else found is None
        hits += bool(expected)
    assert 10 < hits < 300


def test_an_empty_text_is_near_nothing():
    finder = NearDuplicates()
    finder.add("a", "")
    finder.add("b", "some words that stand here")
    assert finder.match("") is None and finder.match("?!") is None
    assert finder.match("Some words, that stand here!") == "b"


def test_what_stands_in_front_of_all_does_not_count():
    """An instruction of forty words before questions of eight: they are not alike for that."""
    draw = random.Random(3)
    instruction = " ".join(draw.choices(WORDS, k=40))
    questions = [" ".join(draw.sample(WORDS, 8)) for _ in range(30)]
    finder = NearDuplicates()
    for number, question in enumerate(questions[:20]):
        finder.add(str(number), f"{instruction} {question}")
    assert [finder.match(f"{instruction} {question}") for question in questions] == [
        *map(str, range(20)), *[None] * 10
    ]  # fmt: skip
