"""NAT: the label goes into the prompt, and every response becomes something to imitate."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align import objectives
from align.data.examples import Example, Prompt, Response, Step
from align.data.load import Rows, load
from align.data.nat import inference_label, labelled, under_labels
from align.data.options import Data, Grade, Nat, Source
from align.errors import UserError
from align.recipe import Eval, Recipe, Retain, Weights
from tests import tiny

NAT = Nat(success="Right.", failure="Wrong.")
GRADED = Nat(grades=[Grade(reward=0, prompt="Fair."), Grade(reward=1, prompt="Best."), Grade(reward=-1, prompt="Bad.")])


def example(*responses: Response, prompt: Prompt = "Hi") -> Example:
    return Example(prompt, responses, "by hand", "my.jsonl:7")


def texts(example: Example, nat: Nat = NAT) -> list[tuple[Prompt, list[str]]]:
    return [(one.prompt, [response.text for response in one.responses]) for one in under_labels(example, nat)]


# One record


def test_each_label_is_a_record_of_its_own():
    given = example(Response("a", "positive"), Response("b", "negative"), Response("c", "positive"))
    assert texts(given) == [("Right.\n\nHi", ["a", "c"]), ("Wrong.\n\nHi", ["b"])]


@pytest.mark.parametrize("role, label", [("positive", "Right."), ("negative", "Wrong.")])
def test_one_kind_of_response_is_one_record(role, label):
    assert texts(example(Response("a", role))) == [(f"{label}\n\nHi", ["a"])]


def test_all_become_positives_and_keep_the_rest():
    bad = Response("b", "negative", -2.0, 0.5, (Step(1, -1),), (-0.5, -1.0))
    (record,) = under_labels(example(bad), NAT)
    assert record.responses == (Response("b", "positive", -2.0, 0.5, (Step(1, -1),), (-0.5, -1.0)),)
    assert (record.source, record.place) == ("by hand", "my.jsonl:7")


def test_samples_are_left_out():
    assert texts(example(Response("a", "sample"), Response("b", "negative"))) == [("Wrong.\n\nHi", ["b"])]
    assert texts(example(Response("a", "sample"))) == []


def test_the_record_itself_stays_as_it_is():
    given = example(Response("a", "positive"))
    under_labels(given, NAT)
    assert given == example(Response("a", "positive"))


# Where the label stands

SYSTEM, TURN = ("system", "Be kind."), (("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"))


@pytest.mark.parametrize(
    "prompt, expected",
    [
        ("Hi", "Right.\n\nHi"),
        ((("user", "Hi"),), (("user", "Right.\n\nHi"),)),
        ((SYSTEM, ("user", "Hi")), (SYSTEM, ("user", "Right.\n\nHi"))),
        (TURN, (("user", "Right.\n\nHi"), *TURN[1:])),
        ((SYSTEM, *TURN), (SYSTEM, ("user", "Right.\n\nHi"), *TURN[1:])),
        ((TURN[1], *TURN), (TURN[1], ("user", "Right.\n\nHi"), *TURN[1:])),
        ((SYSTEM,), (("system", "Right.\n\nBe kind."),)),
    ],
    ids=["text", "user", "system", "turns", "system-turns", "assistant-first", "no-user"],
)
def test_the_label_is_in_front_of_the_first_thing_the_user_says(prompt, expected):
    assert labelled(prompt, "Right.") == expected
    assert texts(example(Response("a", "positive"), prompt=prompt)) == [(expected, ["a"])]


# Grades


@pytest.mark.parametrize("reward, label", [(-1, "Bad."), (-0.01, "Bad."), (0, "Fair."), (0.99, "Fair."), (1, "Best.")])
@pytest.mark.parametrize("role", ["positive", "negative"])
def test_the_grade_is_the_highest_that_is_reached_whatever_the_role(role, reward, label):
    """The grades of GRADED are not in their order."""
    assert texts(example(Response("a", role, reward)), GRADED) == [(f"{label}\n\nHi", ["a"])]


def test_responses_of_one_grade_are_one_record():
    rewards = [0.2, 5.0, 0.4, -0.5]
    given = example(*(Response(str(reward), "negative", reward) for reward in rewards))
    assert texts(given, GRADED) == [
        ("Fair.\n\nHi", ["0.2", "0.4"]),
        ("Best.\n\nHi", ["5.0"]),
        ("Bad.\n\nHi", ["-0.5"]),
    ]


@pytest.mark.parametrize(
    "reward, what", [(None, "a response has no reward to grade it by"), (-1.5, "a reward of -1.5 is below the lowest")]
)
def test_a_response_that_no_grade_fits_is_told(reward, what):
    with pytest.raises(ValueError, match=what):
        under_labels(example(Response("a", "negative", reward)), GRADED)
    assert len(under_labels(example(Response("a", "negative", reward)), NAT)) == 1, "without grades nobody asks"


def test_samples_need_no_reward():
    assert under_labels(example(Response("a", "sample"), Response("b", "negative", 0.0)), GRADED)


def test_what_stands_in_front_when_the_model_is_used():
    assert inference_label(NAT) == "Right."
    assert inference_label(GRADED) == "Best."


# Through `load`


def write(file: Path, *rows: dict) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def loaded(train: str, held_out: str, nat: Nat | None = NAT, weights: Weights | None = None, retain: str = "") -> Rows:
    recipe = Recipe(
        name="test",
        objective={"name": "nll"},
        output="nowhere",
        data=Data(sources=[Source(path=train)], max_length=120, nat=nat),
        weights=weights or Weights(),
        retain=Retain(sources=[Source(path=retain)] if retain else []),
        eval=Eval(sources=[Source(path=held_out)], holdout=0.0),
    )
    return load(recipe, tiny.tokenizer(), objectives.load("nll")())


def read(rows: list) -> list[tuple[str, list[str]]]:
    """(what the model reads, the responses to it) of rows."""
    tokenizer = tiny.tokenizer()
    return [
        (tokenizer.decode(row.prompt_ids), [tokenizer.decode(response.ids) for response in row.responses])
        for row in rows
    ]


def chat(text: str) -> str:
    return f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"


ROW = {
    "prompt": "Hi",
    "responses": [
        {"text": "Hello.", "role": "positive", "reward": 1},
        {"text": "Go.", "role": "negative", "reward": 0},
        {"text": "So?", "role": "sample"},
    ],
}


@pytest.fixture
def files(tmp_path):
    """(training rows, held-out rows)"""
    held_out = write(tmp_path / "held.jsonl", {"prompt": "Ho", "positives": ["Yes"], "negatives": ["No"]})
    return write(tmp_path / "train.jsonl", ROW), held_out


def test_rows_of_a_run(files):
    rows = loaded(*files)
    assert read(rows.train) == [
        (chat("Right.\n\nHi"), ["Hello.<|im_end|>"]),
        (chat("Wrong.\n\nHi"), ["Go.<|im_end|>"]),
    ]
    assert {response.role for row in rows.train for response in row.responses} == {1}
    assert (rows.ledger.read, rows.ledger.used, len(rows.weights)) == (1, 2, 2)


def test_samples_that_are_left_out_are_counted(files):
    ledger = loaded(*files).ledger
    assert ledger.dropped == {"response unused: sample": 1}
    assert ledger.places == {"response unused: sample": [f"{files[0]}:1"]}


def test_without_nat_the_prompts_are_as_they_are_and_negatives_are_not_read(files):
    rows = loaded(*files, nat=None)
    assert read(rows.train) == [(chat("Hi"), ["Hello.<|im_end|>"])]
    assert rows.ledger.dropped == {"response unused: negative": 1, "response unused: sample": 1}


def test_held_out_rows_are_measured_under_the_prompt_of_success(files):
    """Negatives, too: how likely they are where the model is asked to be right."""
    for nat, label in ((NAT, "Right.\n\n"), (GRADED, "Best.\n\n"), (None, "")):
        held_out = {one.role: read(list(one.rows)) for one in loaded(*files, nat=nat).held_out}
        assert held_out == {
            "negative": [(chat(f"{label}Ho"), ["No<|im_end|>"])],
            "positive": [(chat(f"{label}Ho"), ["Yes<|im_end|>"])],
        }


def test_a_prompt_is_on_the_same_side_with_and_without_nat(tmp_path):
    """What is held out is decided before labels are written."""
    file = write(tmp_path / "many.jsonl", *({**ROW, "prompt": f"Question {index}"} for index in range(40)))

    def held(nat: Nat | None) -> list[str]:
        recipe = Recipe(
            name="test",
            objective={"name": "nll"},
            output="nowhere",
            data=Data(sources=[Source(path=file)], max_length=120, nat=nat),
            eval=Eval(sources=[], holdout=0.3),
        )
        return load(recipe, tiny.tokenizer(), objectives.load("nll")()).ledger.places["held out"]

    assert held(NAT) == held(None) and held(NAT)


@pytest.mark.parametrize(
    "reward, what", [({}, "a response has no reward to grade it by"), ({"reward": -3}, "a reward of -3 is below")]
)
def test_a_row_that_no_grade_fits_is_a_user_error(tmp_path, files, reward, what):
    bad = {"prompt": "Hi", "responses": [{"text": "Go.", "role": "negative", **reward}]}
    train = write(tmp_path / "bad.jsonl", ROW, bad)
    with pytest.raises(UserError) as error:
        loaded(train, files[1], GRADED)
    assert str(error.value).startswith(f"{train}:2: data.nat.grades: {what}")
    assert str(error.value).endswith("; give rewards in the rows, or a grade that begins lower")


def test_weights_of_positives_are_those_of_all(files):
    rows = loaded(*files, weights=Weights(positive=3.0))
    assert [response.weight for row in rows.train for response in row.responses] == [3.0, 3.0]


def test_retain_rows_have_no_label(files):
    """They hold the policy where it is used without one; their negatives are not imitated."""
    rows = loaded(*files, retain=files[1])
    assert read(rows.retain) == [(chat("Ho"), ["Yes<|im_end|>"])]
