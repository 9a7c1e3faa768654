"""Every format a row may have becomes the one record, and a broken row says what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.data import sources
from align.data.examples import Example, Response, RowError, Step, parse_row

PLACE = "my.jsonl:7"


def parse(row: object) -> Example:
    return parse_row(row, source="my.jsonl", place=PLACE)


def roles_and_texts(row: dict) -> list[tuple[str, str]]:
    return [(response.role, response.text) for response in parse(row).responses]


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}


# The record of DESIGN.md, section 3


def test_record_with_everything():
    steps = [{"end": 3, "label": 1}, {"end": 7, "label": -1}, {"end": 11, "label": None}]
    row = {
        "prompt": "Count.",
        "responses": [
            {"text": "one two four", "role": "negative", "reward": -1, "weight": 0.5, "steps": steps},
            {"text": "one", "role": "positive", "reward": 0.25},
            {"text": "uno", "role": "sample"},
        ],
        "source": "by hand",
    }
    assert parse(row) == Example(
        prompt="Count.",
        responses=(
            Response("one two four", "negative", -1.0, 0.5, (Step(3, 1), Step(7, -1), Step(11, None))),
            Response("one", "positive", 0.25, 1.0, ()),
            Response("uno", "sample", None, 1.0, ()),
        ),
        source="by hand",
        place=PLACE,
    )


def test_record_of_negatives_alone_is_complete():
    row = {"prompt": "Hi", "responses": [{"text": "No.", "role": "negative"}, {"text": "Go.", "role": "negative"}]}
    assert roles_and_texts(row) == [("negative", "No."), ("negative", "Go.")]


def test_null_means_not_given():
    response = {"text": "No.", "role": "negative", "reward": None, "weight": None, "steps": None}
    assert parse({"prompt": "Hi", "responses": [response]}).responses == (Response("No.", "negative"),)


def test_a_weight_of_zero_is_a_weight():
    response = {"text": "No.", "role": "negative", "weight": 0}
    assert parse({"prompt": "Hi", "responses": [response]}).responses[0].weight == 0.0


def test_log_probs_of_who_wrote_it():
    given = [{"text": "a", "role": "negative", "behavior_logps": logps} for logps in ([-1, 0, -2.5], None)]
    found = parse({"prompt": "Hi", "responses": given}).responses
    assert found == (Response("a", "negative", behavior_logps=(-1.0, 0.0, -2.5)), Response("a", "negative"))


def test_a_step_may_lack_its_label_and_end_with_the_text():
    response = {"text": "one", "role": "negative", "steps": [{"end": 3}]}
    assert parse({"prompt": "Hi", "responses": [response]}).responses[0].steps == (Step(3, None),)


def test_prompt_of_messages():
    prompt = [SYSTEM, user("Hi"), assistant("Hello."), user("Bye")]
    example = parse({"prompt": prompt, "responses": [{"text": "No.", "role": "negative"}]})
    assert example.prompt == (("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"))


def test_texts_of_a_role_in_order():
    example = parse({"prompt": "Hi", "positives": ["a"], "negatives": ["b", "c"]})
    assert (example.texts("positive"), example.texts("negative"), example.texts("sample")) == (["a"], ["b", "c"], [])


@pytest.mark.parametrize("given, expected", [("by hand", "by hand"), (None, "my.jsonl"), ("", "my.jsonl"), (3, "3")])
def test_source_is_the_rows_own_or_the_files(given, expected):
    assert parse({"prompt": "Hi", "negatives": ["No."], "source": given}).source == expected


# The key of a prompt


def test_key_is_the_same_everywhere_and_forever():
    one = parse_row({"prompt": "Say hello.", "negatives": ["No."]}, source="a", place="a:1")
    other = parse_row({"prompt": "Say hello.", "chosen": "Yes.", "rejected": "Go."}, source="b", place="b:9")
    assert one.key == other.key == "c6bb2af0ba33039d"  # sha256 of '"Say hello."': runs of the past depend on it


def test_different_prompts_have_different_keys():
    prompts = ["Hi", "hi", "Hi ", [user("Hi")], [SYSTEM, user("Hi")], [user("Hi"), assistant("Hi"), user("Hi")]]
    assert len({parse({"prompt": prompt, "negatives": ["No."]}).key for prompt in prompts}) == len(prompts)


# prompt, chosen, rejected


def test_pair_of_texts():
    example = parse({"prompt": "Hi", "chosen": "Hello.", "rejected": "Go away."})
    assert example.prompt == "Hi"
    assert example.responses == (Response("Hello.", "positive"), Response("Go away.", "negative"))


def test_pair_of_texts_behind_messages():
    example = parse({"prompt": [user("Hi")], "chosen": "Hello.", "rejected": "Go away."})
    assert example.prompt == (("user", "Hi"),)
    assert (example.texts("positive"), example.texts("negative")) == (["Hello."], ["Go away."])


@pytest.mark.parametrize("prompt", ["Hi", [user("Hi")]], ids=["text", "messages"])
@pytest.mark.parametrize("repeated", [[], [user("Hi")]], ids=["answers-only", "prompt-repeated"])
def test_pair_of_messages_with_prompt(prompt, repeated):
    row = {"prompt": prompt, "chosen": [*repeated, assistant("Hello.")], "rejected": [*repeated, assistant("Go.")]}
    assert parse(row).prompt == (("user", "Hi"),)
    assert roles_and_texts(row) == [("positive", "Hello."), ("negative", "Go.")]


@pytest.mark.parametrize("prompt", [[user("Hi")], [SYSTEM, user("Hi"), assistant("Hello."), user("Bye")]])
def test_pair_of_messages_with_implicit_prompt(prompt):
    row = {"chosen": [*prompt, assistant("Farewell.")], "rejected": [*prompt, assistant("Go.")]}
    assert parse(row).prompt == tuple((message["role"], message["content"]) for message in prompt)
    assert roles_and_texts(row) == [("positive", "Farewell."), ("negative", "Go.")]


# Transcripts, as in Anthropic's files

DIALOGUE = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: How are\n\nyou? \n\nAssistant:"
TURNS = (("user", "Hi there"), ("assistant", "Hello."), ("user", "How are\n\nyou?"))


def test_implicit_dialogue_ends_where_the_last_answer_begins():
    example = parse({"chosen": f"{DIALOGUE} Fine: thank you.\n\nAnd you?", "rejected": f"{DIALOGUE} Go."})
    assert example.prompt == TURNS
    assert [response.role for response in example.responses] == ["positive", "negative"]
    assert [response.text.strip() for response in example.responses] == ["Fine: thank you.\n\nAnd you?", "Go."]


def test_implicit_dialogue_ends_before_turns_that_only_one_answer_goes_on_with():
    row = {"chosen": f"{DIALOGUE} Fine.\n\nHuman: Good.\n\nAssistant: Bye.", "rejected": f"{DIALOGUE} Go."}
    assert parse(row).prompt == TURNS
    assert parse(row).texts("positive")[0].strip() == "Fine.\n\nHuman: Good.\n\nAssistant: Bye."


def test_answers_to_messages_do_not_keep_the_space_behind_the_colon():
    """It belongs to the transcript; behind a chat template it would make every answer begin with a space."""
    example = parse({"chosen": f"{DIALOGUE} Fine.", "rejected": f"{DIALOGUE} Go."})
    assert (example.texts("positive"), example.texts("negative")) == (["Fine."], ["Go."])


@pytest.mark.parametrize("form", [str, str.strip, lambda text: text + " ", lambda text: text + "\n"])
def test_explicit_dialogue_becomes_messages(form):
    assert parse({"prompt": form(DIALOGUE), "negatives": ["Go."]}).prompt == TURNS


def test_explicit_dialogue_with_answers_apart():
    row = {"prompt": "Human: Hi\n\nAssistant:", "chosen": "Hello.", "rejected": "Go."}
    assert parse(row).prompt == (("user", "Hi"),)
    assert roles_and_texts(row) == [("positive", "Hello."), ("negative", "Go.")]


@pytest.mark.parametrize(
    "text",
    [
        "Human: Hi",  # nobody is to answer
        "Tell me.\n\nAssistant:",  # begins with nobody's turn
        "\n\nHuman: Hi\n\nHuman: There\n\nAssistant:",  # turns do not alternate
        "\n\nHuman: Hi\n\nAssistant: Hello.\n\nAssistant:",
        "\n\nHuman: \n\nAssistant:",  # an empty turn
        "Human: Hi\nAssistant:",  # not Anthropic's form
        "  What does 'Human:' mean?\n",
    ],
)
def test_what_is_no_dialogue_stays_the_text_it_is(text):
    assert parse({"prompt": text, "negatives": ["Go."]}).prompt == text


# prompt, completion, label


@pytest.mark.parametrize("label, role", [(True, "positive"), (1, "positive"), (False, "negative"), (0, "negative")])
@pytest.mark.parametrize("completion", ["Hello.", [assistant("Hello.")]], ids=["text", "message"])
def test_labelled_completion(label, role, completion):
    row = {"prompt": "Hi", "completion": completion, "label": label}
    assert parse(row).prompt == "Hi"
    assert roles_and_texts(row) == [(role, "Hello.")]


# prompt, positives, negatives


@pytest.mark.parametrize(
    "lists, expected",
    [
        ({"positives": ["a"], "negatives": ["b", "c"]}, [("positive", "a"), ("negative", "b"), ("negative", "c")]),
        ({"negatives": ["b"]}, [("negative", "b")]),
        ({"negatives": ["b"], "positives": None}, [("negative", "b")]),
        ({"negatives": ["b"], "positives": []}, [("negative", "b")]),
        ({"positives": ["a"]}, [("positive", "a")]),
    ],
)
def test_lists(lists, expected):
    assert roles_and_texts({"prompt": "Hi", **lists}) == expected


def test_the_record_goes_before_other_formats():
    row = {"prompt": "Hi", "responses": [{"text": "No.", "role": "negative"}], "chosen": "a", "rejected": "b"}
    assert roles_and_texts(row) == [("negative", "No.")]


# What is wrong with a row, in words


def with_response(**changes: object) -> dict:
    return {"prompt": "Hi", "responses": [{"text": "12345", "role": "negative"} | changes]}


def with_steps(*steps: object) -> dict:
    return with_response(steps=list(steps))


NO_RESPONSES = (
    "has no responses: give 'responses', 'chosen'/'rejected', 'positives'/'negatives' or 'completion'/'label'; "
)
NOT_ONE_ANSWER = "'chosen' and 'rejected' must be the same prompt with one assistant message each"

LOGPS = "responses[0].behavior_logps"
WRONG = [
    ([], "is a list, not an object with a prompt and responses"),
    ("Hi", "is text, not an object with a prompt and responses"),
    (3, "is a number, not an object with a prompt and responses"),
    (True, "is a truth value, not an object with a prompt and responses"),
    (None, "is null, not an object with a prompt and responses"),
    ({}, NO_RESPONSES + "its keys are none"),
    ({"text": "a", "prompt": "b"}, NO_RESPONSES + "its keys are prompt, text"),
    ({"prompt": "Hi", "chosen": "a"}, NO_RESPONSES + "its keys are chosen, prompt"),
    # record
    ({"prompt": "Hi", "responses": []}, "has no response"),
    ({"prompt": "Hi", "responses": "No."}, "'responses' is text, not a list"),
    ({"prompt": "Hi", "responses": None}, "'responses' is null, not a list"),
    ({"prompt": "Hi", "responses": ["No."]}, "responses[0] is text, not an object with text and role"),
    (with_response(role="bad"), "responses[0].role is 'bad', not one of positive, negative, sample"),
    (with_response(role=None), "responses[0].role is None, not one of positive, negative, sample"),
    (with_response(text=None), "'responses[0].text' is missing"),
    (with_response(text=["a"]), "'responses[0].text' is a list, not text"),
    (with_response(text=" \n"), "'responses[0].text' is empty"),
    (with_response(reward="high"), "responses[0].reward is 'high', not a finite number"),
    (with_response(reward=True), "responses[0].reward is True, not a finite number"),
    (with_response(reward=float("nan")), "responses[0].reward is nan, not a finite number"),
    (with_response(weight=float("inf")), "responses[0].weight is inf, not a finite number"),
    (with_response(weight="2"), "responses[0].weight is '2', not a finite number"),
    (with_response(weight=-0.5), "responses[0].weight is -0.5, below 0: the role says the direction"),
    (with_response(behavior_logps=[]), LOGPS + " is empty, not a list with a log-prob for each token"),
    (with_response(behavior_logps=0), LOGPS + " is a number, not a list with a log-prob for each token"),
    (with_response(behavior_logps={}), LOGPS + " is an object, not a list with a log-prob for each token"),
    (with_response(behavior_logps=[-1, "-2"]), LOGPS + "[1] is '-2', not a finite number"),
    (with_response(behavior_logps=[None]), LOGPS + "[0] is None, not a finite number"),
    (with_response(behavior_logps=[float("-inf")]), LOGPS + "[0] is -inf, not a finite number"),
    (with_response(behavior_logps=[-1, 0.5]), LOGPS + " holds 0.5, above 0: they are natural logs of probabilities"),
    (with_response(steps="12"), "responses[0].steps is not a list of {end, label}"),
    (with_steps(3), "responses[0].steps is not a list of {end, label}"),
    (with_steps({"label": 1}), "responses[0].steps is not a list of {end, label}"),
    (with_steps({"end": 2.0}), "responses[0].steps is not a list of {end, label}"),
    (with_steps({"end": True}), "responses[0].steps is not a list of {end, label}"),
    (with_steps({"end": 6}), "responses[0].steps: ends [6] do not rise within the 5 characters of the text"),
    (with_steps({"end": 0}), "responses[0].steps: ends [0] do not rise within the 5 characters of the text"),
    (
        with_steps({"end": 2}, {"end": 2}),
        "responses[0].steps: ends [2, 2] do not rise within the 5 characters of the text",
    ),
    (
        with_steps({"end": 4}, {"end": 2}),
        "responses[0].steps: ends [4, 2] do not rise within the 5 characters of the text",
    ),
    (with_steps({"end": 4, "label": 2}), "responses[0].steps: a label is 1, -1 or null"),
    (with_steps({"end": 4, "label": "good"}), "responses[0].steps: a label is 1, -1 or null"),
    # prompt
    ({"negatives": ["a"]}, "'prompt' is missing"),
    ({"prompt": 3, "negatives": ["a"]}, "'prompt' is a number, not text"),
    ({"prompt": {"text": "Hi"}, "negatives": ["a"]}, "'prompt' is an object, not text"),
    ({"prompt": " ", "negatives": ["a"]}, "'prompt' is empty"),
    ({"prompt": [], "negatives": ["a"]}, "'prompt' is empty"),
    ({"prompt": ["Hi"], "negatives": ["a"]}, "prompt[0] is not a message with role and content"),
    ({"prompt": [{"content": "Hi"}], "negatives": ["a"]}, "prompt[0] is not a message with role and content"),
    ({"prompt": [{"role": "user"}], "negatives": ["a"]}, "'prompt[0].content' is missing"),
    ({"prompt": [user("Hi"), user("")], "negatives": ["a"]}, "'prompt[1].content' is empty"),
    (
        {"prompt": [user("Hi"), assistant("Hello.")], "negatives": ["a"]},
        "'prompt' ends with an assistant message; it must end where the assistant answers",
    ),
    # pairs
    ({"prompt": "Hi", "chosen": "a", "rejected": None}, "'rejected' is missing"),
    ({"prompt": "Hi", "chosen": "", "rejected": "b"}, "'chosen' is empty"),
    ({"prompt": "Hi", "chosen": [assistant("a")], "rejected": "b"}, "'chosen' is a list, not text"),
    ({"prompt": "Hi", "chosen": [], "rejected": []}, "'chosen' is empty"),
    (
        {"chosen": "Hello.", "rejected": "Go."},
        "has no prompt, and 'chosen' and 'rejected' do not begin with the same dialogue",
    ),
    (
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"},
        "has no prompt, and 'chosen' and 'rejected' do not begin with the same dialogue",
    ),
    ({"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} "}, "'rejected' is empty"),
    ({"prompt": "Hi", "chosen": [user("a")], "rejected": [assistant("b")]}, NOT_ONE_ANSWER),
    ({"prompt": "Hi", "chosen": [assistant("a")] * 2, "rejected": [assistant("b")]}, NOT_ONE_ANSWER),
    ({"chosen": [assistant("a")], "rejected": [assistant("b")]}, NOT_ONE_ANSWER),
    ({"chosen": [user("Hi"), assistant("a")], "rejected": [user("Ho"), assistant("b")]}, NOT_ONE_ANSWER),
    ({"chosen": [user("Hi"), assistant("a")], "rejected": [user("Hi"), user("b")]}, NOT_ONE_ANSWER),
    # label
    ({"prompt": "Hi", "completion": "a", "label": "yes"}, "'label' is 'yes', not true or false"),
    ({"prompt": "Hi", "completion": "a", "label": 2}, "'label' is 2, not true or false"),
    ({"prompt": "Hi", "completion": "a", "label": None}, "'label' is None, not true or false"),
    ({"prompt": "Hi", "completion": None, "label": True}, "'completion' is missing"),
    ({"completion": "a", "label": True}, "'prompt' is missing"),
    ({"prompt": "Hi", "completion": [user("a")], "label": True}, "'completion' must be one assistant message"),
    ({"prompt": "Hi", "completion": [assistant("a")] * 2, "label": 1}, "'completion' must be one assistant message"),
    # lists
    ({"prompt": "Hi", "negatives": []}, "has no response"),
    ({"prompt": "Hi", "positives": None, "negatives": None}, "has no response"),
    ({"prompt": "Hi", "negatives": "No."}, "'negatives' is text, not a list of texts"),
    ({"prompt": "Hi", "positives": {"a": 1}}, "'positives' is an object, not a list of texts"),
    ({"prompt": "Hi", "negatives": ["a", ""]}, "'negatives[1]' is empty"),
    ({"prompt": "Hi", "negatives": [None]}, "'negatives[0]' is missing"),
    ({"prompt": "Hi", "negatives": [["a"]]}, "'negatives[0]' is a list, not text"),
]


@pytest.mark.parametrize("row, text", WRONG, ids=[f"{n}-{text[:40]}" for n, (_, text) in enumerate(WRONG)])
def test_error_text(row, text):
    with pytest.raises(RowError) as error:
        parse(row)
    assert str(error.value) == text


@pytest.mark.parametrize("key", ["reward", "weight"])
def test_a_whole_number_beyond_floats_is_not_finite(key):
    """JSON has no limit on digits, so a file can hold such a number."""
    with pytest.raises(RowError, match=rf"responses\[0\]\.{key} is 1000"):
        parse(with_response(**{key: 10**400}))


# Real rows

REAL = Path(__file__).resolve().parents[2].parent / "shared" / "data"

# file -> rows, positives, negatives, as its README counts them
COUNTS = {
    "arc_challenge": (700, 700, 2098),
    "arc_easy": (700, 700, 2099),
    "boolq": (700, 700, 700),
    "gsm8k_groups": (603, 1697, 1915),
    "gsm8k_solutions": (676, 1729, 1645),
    "hh_harmless": (700, 700, 700),
    "processbench_gsm8k": (207, 102, 105),
    "strategyqa": (700, 700, 700),
    "truthfulqa": (421, 1324, 1700),
    "ultrafeedback": (444, 444, 444),
}


@pytest.fixture(scope="module")
def real() -> Path:
    if not REAL.is_dir():
        pytest.skip(f"there is no {REAL}: the real rows are not part of the repository")
    return REAL


@pytest.mark.parametrize("name", COUNTS)
def test_real_rows(name, real):
    file = real / f"{name}.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    ledger = sources.Ledger()
    examples = sources.read(str(file), "train", on_bad_rows="stop", ledger=ledger)
    positives = sum(len(example.texts("positive")) for example in examples)
    negatives = sum(len(example.texts("negative")) for example in examples)
    assert (len(examples), positives, negatives) == COUNTS[name]
    assert (ledger.read, ledger.dropped) == (len(rows), {})
    assert [example.place for example in examples] == [f"{file}:{number}" for number in range(1, len(rows) + 1)]
    for row, example in zip(rows, examples, strict=True):
        assert (example.texts("positive"), example.texts("negative")) == (row["positives"], row["negatives"])
        assert example.texts("sample") == [] and example.source == row["source"]


def test_real_rows_without_a_prompt(real):
    """BLiMP's sentences answer nothing: they stand alone."""
    ledger, file = sources.Ledger(), real / "blimp.jsonl"
    examples = sources.read(str(file), "train", on_bad_rows="stop", ledger=ledger)
    assert (ledger.read, len(examples), ledger.dropped) == (700, 700, {})
    assert {example.prompt for example in examples} == {""}


def test_an_empty_prompt_is_kept_where_the_row_says_so():
    """In front of a transcript that both answers begin with, it is none."""
    assert parse({"prompt": "", "chosen": "a", "rejected": "b"}).prompt == ""
    assert parse({"prompt": "", "negatives": ["a"]}).prompt == ""
    both = {"chosen": f"{DIALOGUE} a", "rejected": f"{DIALOGUE} b"}
    assert parse(both | {"prompt": ""}) == parse(both) and parse(both).prompt[0] == ("user", "Hi there")


def test_real_dialogues_become_messages(real):
    file = real / "hh_harmless.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    examples = sources.read(str(file), "train", on_bad_rows="stop", ledger=sources.Ledger())
    plain = [example for example in examples if isinstance(example.prompt, str)]
    assert len(plain) == 1 and "Hey B, what did you watch?" in plain[0].prompt  # the assistant speaks twice
    for row, example in zip(rows, examples, strict=True):
        if example is not plain[0]:
            names = [("user", "assistant")[turn % 2] for turn in range(len(example.prompt))]
            assert [role for role, _ in example.prompt] == names and names[-1] == "user"
            assert transcript(example).split() == row["prompt"].split()


def transcript(example: Example) -> str:
    names = {"user": "Human", "assistant": "Assistant"}
    return "".join(f"{names[role]}: {content}\n\n" for role, content in example.prompt) + "Assistant:"
