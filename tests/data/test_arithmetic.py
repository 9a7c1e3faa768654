"""`builtin:arithmetic`: parts that share nothing, right solutions, and the exact rule for steps."""

import random

import pytest

from align.data import arithmetic, sources
from align.data.examples import Example, parse_row
from align.data.ledger import Ledger
from align.judges.segment import segment


@pytest.fixture(scope="module")
def parts() -> dict[str, list[Example]]:
    return {
        name: sources.read("builtin:arithmetic", name, on_bad_rows="stop", ledger=Ledger()) for name in arithmetic.PARTS
    }


def question(example: Example) -> str:
    return example.prompt[-1][1]


def test_parts_share_no_problem_and_have_their_size(parts):
    asked = {name: {question(one) for one in examples} for name, examples in parts.items()}
    assert {name: len(found) for name, found in asked.items()} == arithmetic.PARTS
    assert not asked["train"] & asked["heldout"] and not asked["train"] & asked["warm"]
    assert not asked["warm"] & asked["heldout"]


def test_the_same_on_every_machine(parts):
    first = parts["train"][0]
    assert (question(first), first.responses[0].text) == ("38+2+17+36", "38+2=40\n40+17=57\n57+36=93")


def test_solutions_are_right(parts):
    for example in [one for examples in parts.values() for one in examples]:
        text = example.responses[0].text
        assert int(text.rpartition("=")[2]) == eval(question(example))  # our own text
        assert arithmetic.judge_steps(example, text, segment(text, "lines")) == [1.0, 1.0, 1.0]


def judged(asked: str, text: str) -> list[float | None]:
    example = parse_row({"prompt": [{"role": "user", "content": asked}], "positives": ["0"]}, source="", place="")
    return arithmetic.judge_steps(example, text, segment(text, "lines"))


def test_which_steps_are_right():
    asked = "(12+5)*3-8"  # 12+5=17, 17*3=51, 51-8=43
    assert judged(asked, "12+5=17\n3*17=51\n51-8=43") == [1, 1, 1]  # either order
    assert judged(asked, "12+5=18\n18*3=54\n54-8=46") == [0, 0, 0]  # a wrong result taken further
    assert judged(asked, "12+5=17\n17*3=41\n51-8=43") == [1, 0, 1]  # right beside a mistake
    assert judged(asked, "12+5=17\n12+5=17\n51-8=43") == [1, 0, 1]  # done before
    assert judged(asked, "12+5=17\n8-51=43\n17+3=20") == [1, 0, 0]
    assert judged(asked, "so: 12+5=17\n12+5=17.") == [0, 0]  # a step is one equation


def test_a_mistake_anywhere_makes_a_step_wrong(parts):
    draw = random.Random(0)
    for example in parts["heldout"]:
        lines = example.responses[0].text.split("\n")
        at = draw.randrange(3)
        left, _, result = lines[at].partition("=")
        lines[at] = f"{left}={int(result) + draw.choice([-10, -1, 1, 10])}"
        text = "\n".join(lines)
        assert arithmetic.judge_steps(example, text, segment(text, "lines")) == [float(n != at) for n in range(3)]


@pytest.mark.parametrize("expression", ["", "1+", "2**3", "__import__", "1/2", "(" * 300, "(" * 199])
def test_what_is_no_expression(expression):
    with pytest.raises(ValueError):
        arithmetic.parse(expression)


def test_unknown_parts_are_told():
    assert sources.check("builtin:arithmetic", "test") == (
        "builtin:arithmetic has no split 'test'", "it has train and heldout and warm"
    )  # fmt: skip
