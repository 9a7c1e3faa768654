"""Formats of other data sets: steps, Alpaca, ShareGPT, and what is wrong with their rows."""

from __future__ import annotations

import json

import pytest

from align.data.examples import Example, Response, RowError, Step, parse_row
from tests.data.test_examples import DIALOGUE, TURNS, real  # noqa: F401


def parse(row: dict) -> Example:
    return parse_row(row, source="my.jsonl", place="my.jsonl:7")


# Steps


def test_steps_beside_the_lists():
    row = {
        "prompt": "Count.",
        "positives": ["one two"],
        "negatives": ["one six", "no"],
        "pos_steps": [{"ends": [3, 7], "labels": [1, 1]}],
        "neg_steps": [{"ends": [3, 7], "labels": [1, -1]}, None],
    }
    assert parse(row).responses == (
        Response("one two", "positive", steps=(Step(3, 1), Step(7, 1))),
        Response("one six", "negative", steps=(Step(3, 1), Step(7, -1))),
        Response("no", "negative"),
    )


def test_completions_are_the_steps_of_one_response():
    row = {"prompt": "Count.", "completions": ["one", "six"], "labels": [True, False]}
    assert parse(row).responses == (Response("one\nsix", "negative", steps=(Step(3, 1), Step(7, -1))),)
    assert parse({**row, "labels": [True, True]}).texts("positive") == ["one\nsix"]


def test_steps_move_with_a_text_that_loses_the_space_behind_the_colon():
    row = {"prompt": DIALOGUE, "negatives": [" one six"], "neg_steps": [{"ends": [4, 8], "labels": [1, -1]}]}
    assert parse(row).prompt == TURNS
    assert parse(row).responses == (Response("one six", "negative", steps=(Step(3, 1), Step(7, -1))),)


def test_real_steps(real):  # noqa: F811
    lines = (real / "processbench_gsm8k.jsonl").read_text(encoding="utf-8").splitlines()
    labels = [step.label for line in lines for one in parse(json.loads(line)).responses for step in one.steps]
    assert [labels.count(label) for label in (1, -1, None)] == [693, 105, 282]  # as its README counts them


# The space behind `Assistant:`


@pytest.mark.parametrize(
    "answers",
    [
        {"negatives": [" Go."]},
        {"chosen": " Go.", "rejected": " Go."},
        {"completion": " Go.", "label": False},
        {"responses": [{"text": " Go.", "role": "negative"}]},
    ],
    ids=lambda answers: next(iter(answers)),
)
def test_answers_behind_a_transcript_lose_the_space_and_others_keep_it(answers):
    assert {response.text for response in parse({"prompt": DIALOGUE, **answers}).responses} == {"Go."}
    assert {response.text for response in parse({"prompt": "Hi", **answers}).responses} == {" Go."}


# Alpaca


@pytest.mark.parametrize("given, prompt", [({}, "Add."), ({"input": ""}, "Add."), ({"input": "1, 2"}, "Add.\n\n1, 2")])
@pytest.mark.parametrize("label, role", [({}, "positive"), ({"label": True}, "positive"), ({"label": 0}, "negative")])
def test_alpaca(given, prompt, label, role):
    example = parse({"instruction": "Add.", "output": "3", **given, **label})
    assert (example.prompt, example.responses) == (prompt, (Response("3", role),))


# ShareGPT


def said(*turns: str) -> list[dict]:
    return [dict(zip(("from", "value"), turn.split(": "), strict=True)) for turn in turns]


CHAT = said("system: Be kind.", "human: Hi", "gpt: Hello.", "human: Bye")
PROMPT = (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"))


@pytest.mark.parametrize("name", ["prompt", "question"])
def test_a_question_with_its_answer(name):
    for answer, text in (("It is 7.", "It is 7."), (7, "7"), (0.5, "0.5")):
        assert parse({name: "What is it?", "answer": answer}) == Example(
            "What is it?", (Response(text, "positive"),), "my.jsonl", "my.jsonl:7"
        )
    for answer in (True, "", None):
        with pytest.raises(RowError, match="'answer'"):
            parse({name: "What is it?", "answer": answer})
    with pytest.raises(RowError, match="'prompt' is missing"):
        parse({"answer": "7"})


@pytest.mark.parametrize("behind", [[], said("human: Still there?")])
def test_sharegpt_learns_the_last_answer(behind):
    example = parse({"conversations": [*CHAT, *said("gpt: Farewell."), *behind]})
    assert (example.prompt, example.responses) == (PROMPT, (Response("Farewell.", "positive"),))


def test_sharegpt_with_a_label():
    example = parse({"conversations": [*CHAT, *said("gpt: Go.")], "label": False})
    assert example.responses == (Response("Go.", "negative"),)


def test_sharegpt_pair():
    chosen, rejected = said("gpt: Farewell.", "gpt: Go.")
    example = parse({"conversations": CHAT, "chosen": chosen, "rejected": rejected})
    assert (example.prompt, example.responses) == (
        PROMPT,
        (Response("Farewell.", "positive"), Response("Go.", "negative")),
    )


# Scores as rewards


SAID = [{"role": "user", "content": "Hi"}]
PAIRS = {
    "texts": {"prompt": "Hi", "chosen": "Yes", "rejected": "No"},
    "messages": {
        "chosen": [*SAID, {"role": "assistant", "content": "Yes"}],
        "rejected": [*SAID, {"role": "assistant", "content": "No"}],
    },
    "transcripts": {"chosen": DIALOGUE + " Yes", "rejected": DIALOGUE + " No"},
    "ShareGPT": {
        "conversations": said("human: Hi"),
        "chosen": said("gpt: Yes")[0],
        "rejected": said("gpt: No")[0],
    },
}


@pytest.mark.parametrize("row", PAIRS.values(), ids=PAIRS)
@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen_score", "rejected_score")], ids=str)
def test_scores_are_rewards(row, names):
    found = parse({**row, names[0]: 8, names[1]: -1.5}).responses
    assert found == (Response("Yes", "positive", 8.0), Response("No", "negative", -1.5))


def test_a_score_of_0_is_a_reward_and_the_order_of_scores_does_not_matter():
    found = parse({**PAIRS["texts"], "score_chosen": 0, "score_rejected": 3}).responses
    assert [(one.role, one.reward) for one in found] == [("positive", 0.0), ("negative", 3.0)]


@pytest.mark.parametrize(
    "scores",
    [{}, {"score_chosen": 8}, {"score_chosen": 8, "score_rejected": None}, {"score_chosen": 8, "rejected_score": 1}],
    ids=["none", "one", "null", "of two formats"],
)
def test_half_a_score_is_none(scores):
    """A reward on one side alone would be dropped with the whole run's."""
    assert [one.reward for one in parse({**PAIRS["texts"], **scores}).responses] == [None, None]


def test_scores_of_rows_that_are_no_pairs_are_none():
    row = {"prompt": "Hi", "positives": ["Yes"], "negatives": ["No"], "score_chosen": 8, "score_rejected": 1}
    assert [one.reward for one in parse(row).responses] == [None, None]


WRONG = [
    ({**PAIRS["texts"], "score_chosen": "8", "score_rejected": 1}, "score_chosen is '8', not a finite number"),
    ({**PAIRS["texts"], "score_chosen": 8, "score_rejected": float("nan")}, "score_rejected is nan, not a finite"),
    ({"prompt": "Hi", "negatives": ["a"], "neg_steps": [None, None]}, "'neg_steps' is not a list with one entry for"),
    ({"prompt": "Hi", "negatives": ["a"], "neg_steps": [3]}, "neg_steps[0] is not two lists of one length"),
    (
        {"prompt": "Hi", "negatives": ["a"], "neg_steps": [{"ends": [1], "labels": []}]},
        "neg_steps[0] is not two lists of one length, ends and labels",
    ),
    (
        {"prompt": "Hi", "negatives": ["a"], "neg_steps": [{"ends": [2], "labels": [1]}]},
        "neg_steps[0]: ends [2] do not rise within the 1 characters of the text",
    ),
    ({"prompt": "Hi", "completions": "a", "labels": [True]}, "'completions' is text, not a list"),
    ({"prompt": "Hi", "completions": [], "labels": []}, "has no response"),
    ({"prompt": "Hi", "completions": ["a"], "labels": [True] * 2}, "'labels' is not a list of true or false, one for"),
    ({"prompt": "Hi", "completions": ["a"], "labels": ["no"]}, "'labels' is not a list of true or false, one for"),
    ({"instruction": "", "output": "a"}, "'instruction' is empty"),
    ({"instruction": "Add.", "input": 3, "output": "a"}, "'input' is a number, not text"),
    ({"instruction": "Add.", "output": None}, "'output' is missing"),
    ({"conversations": "Hi"}, "'conversations' is text, not a list"),
    ({"conversations": []}, "'conversations' is empty"),
    ({"conversations": said("human: Hi")}, "'conversations' has no answer of the assistant to a user's turn"),
    ({"conversations": said("gpt: Hi")}, "'conversations' has no answer of the assistant to a user's turn"),
    (
        {"conversations": said("tool: Hi")},
        "conversations[0].from is 'tool', not one of human, user, gpt, assistant, system",
    ),
    ({"conversations": [{"from": "human"}]}, "'conversations[0].value' is missing"),
    (
        {"conversations": [*CHAT, *said("gpt: a")], "chosen": said("gpt: b")[0], "rejected": said("gpt: c")[0]},
        "'conversations' ends with an assistant message; it must end where the assistant answers",
    ),
]


@pytest.mark.parametrize("row, text", WRONG, ids=[f"{n}-{text[:40]}" for n, (_, text) in enumerate(WRONG)])
def test_error_text(row, text):
    with pytest.raises(RowError) as error:
        parse(row)
    assert str(error.value).startswith(text)
