"""Likra's control negatives: whose they are, and that they are drawn anew for another seed only."""

from __future__ import annotations

import pytest

from align.data.examples import Example, Response
from align.negatives.controls import irrelevant, near_miss, other_questions


def question(number: int, *wrong: str, right: str = "right") -> Example:
    answers = [Response(right, "positive"), *(Response(text, "negative") for text in wrong)]
    return Example(f"question {number}?", tuple(answers), "tests", f"rows:{number}")


QUESTIONS = [question(n, *(f"wrong {n}.{k}" for k in range(3))) for n in range(12)]
STRANGERS = [question(100 + n, f"strange {n}") for n in range(5)]
KINDS = {
    "near": lambda seed: near_miss(QUESTIONS, seed),
    "other": lambda seed: other_questions(QUESTIONS, seed),
    "irrelevant": lambda seed: irrelevant(QUESTIONS, STRANGERS, seed),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_positive_and_one_negative_a_question(kind):
    made = KINDS[kind](0)
    assert [example.prompt for example in made] == [example.prompt for example in QUESTIONS]
    for before, after in zip(QUESTIONS, made, strict=True):
        (negative,) = after.texts("negative")
        assert after.texts("positive") == ["right"]
        own = negative in before.texts("negative")
        assert own == (kind == "near")
        assert negative.startswith("strange" if kind == "irrelevant" else "wrong")


@pytest.mark.parametrize("kind", KINDS)
def test_the_draw_depends_on_the_seed_alone(kind):
    assert KINDS[kind](1) == KINDS[kind](1) != KINDS[kind](2)


def test_a_negative_of_another_question_is_no_answer_of_this_one():
    same = [question(1, "no", right="yes"), question(2, "no", "maybe", right="yes"), question(3, "never", right="no")]
    for seed in range(8):  # neither its own wrong answer, nor one that is right here
        first, _, last = other_questions(same, seed)
        assert first.texts("negative") in (["maybe"], ["never"]) and last.texts("negative") == ["maybe"]
    with pytest.raises(ValueError, match="rows:1: no other question"):
        other_questions([question(1, "no"), question(2, "no")], 0)
