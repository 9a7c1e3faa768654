"""Edits of good answers: what each kind makes of a text, by hand; what is left alone; what follows from an error."""

from __future__ import annotations

from fractions import Fraction
from random import Random

import pytest

from align.negatives.edits import Answer, Edit, replace
from align.negatives.edits.equations import compute, equation_edits, equations_of
from align.negatives.nearmiss import EDITS


def made(kind: str, text: str, prompt: str = "", others: tuple[str, ...] = ()) -> set[str]:
    """All texts that a kind makes under some draws."""
    answer = Answer(prompt, text, others)
    return {edit.apply(text)[0] for seed in range(60) for edit in EDITS[kind](answer, Random(seed))}


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("unit", "It takes 3 hours.", {f"It takes 3 {unit}." for unit in ("seconds", "minutes", "days", "weeks",
                                                                        "months", "years")}),
        ("opposite", "Prices increase in winter.", {"Prices decrease in winter."}),
        ("opposite", "It is an unhealthy meal.", {"It is a healthy meal."}),
        ("opposite", "Cats sleep more often.", {"Cats sleep less often."}),
        ("opposite", "More people, more or less.", set()),
        ("opposite", "There is no way to sober up more quickly.", set()),
        ("entity", "He will probably star in it.", set()),
        ("entity", "You may black out.", set()),
        ("entity", "The girl sings.", {"The boy sings."}),
        ("negation", "It is legal provided it is not loud.", set()),  # the condition alone would turn
        ("negation", "Yes, it is legal provided it is not loud.", set()),
        ("negation", "Rent buys more than it did in 1950.", set()),
        ("negation", "Few films are illegal.", set()),
        ("negation", "There are no special powers.", {"There are special powers."}),
        ("negation", "He has no special powers.", {"He has special powers."}),
        ("quantifier", "All of the birds fly.", {"None of the birds fly."}),
        ("quantifier", "All birds fly.", {"No birds fly."}),
        ("quantifier", "They all sing at all times, not always.", set()),
        ("quantifier", "You need at least 5.", {"You need at most 5."}),
        ("negation", "The sun is hot.", {"The sun is not hot."}),
        ("negation", "Heat causes expansion.", {"Heat does not cause expansion."}),
        ("negation", "It has been seen.", {"It has not been seen."}),
        ("negation", "You can not see it.", {"You can see it."}),
        ("negation", "It doesn't rain, he said.", {"It does rain, he said."}),
        ("negation", "You can't win.", {"You can win."}),
        ("negation", "There is no rule.", {"There is a rule."}),
        ("negation", "There is no scientific evidence.", {"There is some scientific evidence."}),
        ("negation", "I have no personal knowledge.", {"I have some personal knowledge."}),
        ("negation", "There are no rules.", {"There are rules."}),
        ("negation", "He did not do anything to any cat.", {"He did do something to some cat."}),
        ("negation", "He did not do it at all.", set()),
        ("negation", "Yes", {"No"}),
        ("negation", "Yes, it is big.", {"No, it is not big."}),
        ("negation", "No, it is not big.", {"Yes, it is big."}),
        ("negation", "It is not true that no one came.", set()),  # negated twice
        ("negation", "It may be so. Which is why it is odd.", set()),  # may not be so, too
        ("negation", "What is it?", set()),
        ("number", "He has four cats.", {f"He has {number} cats." for number in ("two", "three", "five", "six")}),
        ("number", "Step 2: take 1 spoon of v1.5 at 10:30.", set()),
        ("number", "It fell more than 20 m.", {"It fell more than 60 m.", "It fell more than 200 m."}),
        ("number", "It fell at most 20 m.", {"It fell at most 10 m.", "It fell at most 5 m.", "It fell at most 2 m."}),
        ("number", "The 3rd of 90%", {"The 2nd of 90%", "The 4th of 90%", "The 5th of 90%", "The 6th of 90%",
                                      "The 3rd of 45%", "The 3rd of 70%", "The 3rd of 95%"}),
        ("number", "There are not 30 of them.", set()),
    ],
)  # fmt: skip
def test_by_hand(kind, text, expected):
    assert made(kind, text) == expected


def test_members_of_a_class_that_the_prompt_names_come_first():
    text, prompt = "Paris is larger.", "Is Paris larger than Rome?"
    assert made("entity", text, prompt) == {"Rome is larger."}
    assert len(made("entity", text)) > 5
    assert made("entity", text, "What of Paris?") == set()  # of another city it may be as true
    assert made("entity", text, others=("Tokyo",)) == set()  # several cities are right
    assert made("entity", "No reptiles sing.") == set()
    assert made("entity", "It is carbon dioxide.") == set()


def test_two_of_a_class_in_a_sentence_change_places():
    assert made("entity", "London is milder than Berlin.", "London or Berlin?") == {"Berlin is milder than London."}
    assert made("entity", "John and Mary sing.", "Where are John, Mary?") == set()  # the same in another order
    assert made("opposite", "It goes from hot tea to cold.") == {"It goes from cold tea to hot."}


def test_code_and_addresses_are_left_alone():
    text = "Use `more than 20` or\n```\nx = 20 < 30\n```\nhttps://a.example/20/30 now."
    free = [
        edit for edit in EDITS["number"](Answer("", text), Random(0)) if Answer("", text).is_free(edit.start, edit.end)
    ]
    assert free == []


def test_articles_and_capitals_follow():
    assert replace(Answer("", "An old man"), "opposite", 3, 6, "young").apply("An old man")[0] == "A young man"
    assert replace(Answer("", "a hot egg"), "opposite", 2, 5, "icy").apply("a hot egg")[0] == "an icy egg"
    assert replace(Answer("", "Old men"), "opposite", 0, 3, "young").apply("Old men")[0] == "Young men"


def test_where_the_wrong_part_is_afterwards():
    """Pieces behind the wrong part do not move its end; those inside do."""
    edit = Edit("number", 4, 9, ((4, 6, "abc"), (8, 9, ""), (12, 13, "zzzz")))
    text = "0123456789abcdef"
    changed, (start, end) = edit.apply(text)
    assert changed == "0123abc679abzzzzdef" and changed[start:end] == "abc67"


SOLUTION = "He walks 3*60=180 miles.\nThen 180-135=45 miles more.\nA: 45"


def test_an_error_is_carried_to_the_end():
    """3+60 = 63 would make 63 - 135 negative; 180 + 135 = 315."""
    prompt = "He walks 3 hours at 60 mph, and comes 135 miles back."
    assert made("operator", SOLUTION, prompt) == {"He walks 3*60=180 miles.\nThen 180+135=315 miles more.\nA: 315"}
    numbers = made("number", SOLUTION, prompt)
    assert "He walks 3*60=190 miles.\nThen 190-135=55 miles more.\nA: 55" in numbers
    assert all(text.rpartition(" ")[2] != "45" for text in numbers)
    carried = [
        text.partition("Then ")[2].partition(" miles")[0].split("=") for text in numbers if "*60=180" not in text
    ]
    assert len(carried) > 5
    assert all(compute(left) == Fraction(right) for left, right in carried), "what follows agrees with the error"


def test_what_is_wrong_is_the_equation():
    edits = list(equation_edits(Answer("3 60 135", SOLUTION), Random(0), "operator"))
    changed, (start, end) = edits[0].apply(SOLUTION)
    assert changed[start:end] == "+135=315"


@pytest.mark.parametrize(
    "text",
    [
        "3*60=180\nSo it is late.\nA: 7",  # the answer does not depend on it
        "180 miles. 3*60=180\nA: 180",  # 180 was there before
    ],
)
def test_equations_that_cannot_be_carried_are_left_alone(text):
    assert made("operator", text) == made("number", text) == set()


def test_equations_that_do_not_check_out_are_none():
    assert equations_of("3*60=181\nA: 181") == () and made("operator", "3*60=181\nA: 181") == set()


@pytest.mark.parametrize(
    ("expression", "value"),
    [("2+3*4", 14), ("(2 + 3) x 4", 20), ("$2 x 12", 24), ("2 pounds/bed * 4 beds", 8), ("50%*4", 2), ("1/2*3", 1.5),
     ("(2", None), ("4/0", None), ("7 - 2 - 1", 4), ("8 ÷ 2 × 3", 12)],
)  # fmt: skip
def test_expressions(expression, value):
    assert compute(expression) == (None if value is None else Fraction(value))


STEPS = "Step 1: Boil water.\nStep 2: Add tea.\nStep 3: Drink."


def test_steps_change_places_or_are_left_out():
    assert made("order", STEPS) == {"Step 1: Add tea.\nStep 2: Boil water.\nStep 3: Drink."}
    assert made("drop", STEPS) == {"Step 1: Add tea.\nStep 2: Drink."}
    listed = STEPS.replace("Step ", "").replace(":", ".")
    assert made("order", listed) == set()  # a list, for all that one knows
    assert len(made("order", listed, "How do I make tea?")) == 1
    computed = "2*3=6 bags.\n6*4=24 cups.\nA: 24"  # whatever is left unsaid, 24 is right
    assert made("drop", computed) == made("order", computed) == set()


def test_another_option():
    prompt = "Which is it?\nA) tea\nB) milk\nC) water"
    assert made("option", "The answer is B) milk.", prompt) == {"The answer is A) tea.", "The answer is C) water."}
    assert made("option", "b", prompt) == {"a", "c"}
    assert made("option", "Milk.", prompt) == set()
