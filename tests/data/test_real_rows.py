"""Every format on real rows (where they are at hand) and on rows of our own: the same content is the same record."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest

from align.data.examples import Example, RowError, parse_row, to_row
from align.data.ledger import Ledger
from align.data.tokenize import encode_row
from tests import tiny

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
OWN = [
    {"prompt": "What is 2 + 2?", "positives": ["It is 4."], "negatives": ["It is 5, of course."]},
    {
        "prompt": "Name a river.\nOnly one.",
        "positives": ["The Rhine \u2013 for one"],
        "negatives": ["Mount \u00c9rebus"],
    },
]
TOKENIZER = tiny.tokenizer()


def real(name: str, count: int = 40) -> list[dict]:
    """Rows with a positive and a negative each; of our own where the real ones are not at hand."""
    file = SHARED / f"{name}.jsonl"
    if not file.exists():
        return OWN
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [row for row in rows if row["prompt"] and row["positives"] and row["negatives"]][:count]


def same(example: Example, other: Example) -> bool:
    leave = {"source": "", "place": ""}
    return dataclasses.replace(example, **leave) == dataclasses.replace(other, **leave)


def record(row: dict) -> Example:
    return parse_row(row, source="s", place="p")


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def said(text: str) -> dict:
    return {"role": "assistant", "content": text}


def pair_formats(prompt: str, good: str, bad: str) -> list[tuple[str, dict]]:
    """(expected prompt: text or chat, row) of one pair in every format of pairs."""
    chat = [user(prompt)]
    return [
        ("text", {"prompt": prompt, "positives": [good], "negatives": [bad]}),
        ("text", {"prompt": prompt, "chosen": good, "rejected": bad}),
        ("text", {"question": prompt, "chosen": good, "rejected": bad, "system": ""}),
        ("text", {"instruction": prompt, "input": "", "chosen": good, "rejected": bad}),
        ("chat", {"prompt": chat, "chosen": [said(good)], "rejected": [said(bad)]}),
        ("chat", {"chosen": [*chat, said(good)], "rejected": [*chat, said(bad)]}),
        ("chat", {"prompt": prompt, "chosen": [*chat, said(good)], "rejected": [*chat, said(bad)]}),
        ("chat", {"conversations": [{"from": "human", "value": prompt}], "chosen": {"from": "gpt", "value": good},
                  "rejected": {"from": "gpt", "value": bad}}),
        ("chat", {"prompt": [{"role": "user", "content": [{"type": "text", "text": prompt}]}],
                  "positives": [good], "negatives": [bad]}),
        ("chat", {"prompt": chat, "responses": [{"text": good, "role": "positive"},
                                                {"text": bad, "role": "negative"}]}),
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["arc_easy", "truthfulqa", "ultrafeedback", "boolq", "gsm8k_groups", "strategyqa"])
def test_formats_of_pairs_give_one_record(name):
    for row in real(name):
        prompt, good, bad = row["prompt"], row["positives"][0], row["negatives"][0]
        text = record({"prompt": prompt, "positives": [good], "negatives": [bad]})
        chat = dataclasses.replace(text, prompt=(("user", prompt),))
        for kind, given in pair_formats(prompt, good, bad):
            assert same(record(given), text if kind == "text" else chat), given.keys()
            assert same(record(to_row(record(given))), record(given))


def single_formats(prompt: str, answer: str) -> list[tuple[str, dict]]:
    chat = [user(prompt), said(answer)]
    return [
        ("text", {"prompt": prompt, "completion": answer}),
        ("text", {"instruction": prompt, "output": answer}),
        ("chat", {"messages": chat}),
        ("chat", {"prompt": [user(prompt)], "completion": [said(answer)]}),
        ("chat", {"conversations": [{"from": "human", "value": prompt}, {"from": "gpt", "value": answer}]}),
        ("chat", {"messages": [*chat, user("And then?")]}),
    ]


@pytest.mark.parametrize("label", [None, True, 1, False, 0])
def test_formats_of_single_answers_give_one_record(label):
    for row in real("gsm8k_solutions"):
        prompt, answer = row["prompt"], row["positives"][0]
        role = "positives" if label in (None, True) else "negatives"
        text = record({"prompt": prompt, role: [answer]})
        for kind, given in single_formats(prompt, answer):
            given = given if label is None else given | {"label": label}
            prompt_is = prompt if kind == "text" else (("user", prompt),)
            assert same(record(given), dataclasses.replace(text, prompt=prompt_is)), given.keys()


def test_step_labels_give_one_record():
    """ProcessBench's offsets, TRL's stepwise columns."""
    file = SHARED / "processbench_gsm8k.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    rows = rows or [{"prompt": "p", "positives": [], "negatives": ["a b\nc d"], "neg_steps": [
        {"ends": [4, 7], "labels": [1, -1]}], "pos_steps": []}]  # fmt: skip
    seen = 0
    for row in rows:
        example = record(row)
        for response in example.responses:
            ends = [step.end for step in response.steps]
            assert ends and ends[-1] <= len(response.text)
            labels = [step.label for step in response.steps]
            if None not in labels and all(end == len(response.text) or response.text[end - 1] == "\n" for end in ends):
                texts = [response.text[a:b].rstrip("\n") for a, b in zip([0, *ends], ends, strict=False)]
                stepwise = record(
                    {"prompt": row["prompt"], "completions": texts, "labels": [one == 1 for one in labels]}
                )
                assert stepwise.responses[0].text == response.text
                assert [step.label for step in stepwise.responses[0].steps] == labels
                seen += 1
    assert seen or file.exists()


def test_transcripts_become_turns():
    file = SHARED / "hh_harmless.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()][:100] if file.exists() else []
    rows = rows or [{"prompt": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Go.\n\nAssistant:", "positives": [" So"],
                     "negatives": [" No"]}]  # fmt: skip
    for row in rows:
        whole = record(
            {side: row["prompt"] + row[key][0] for side, key in (("chosen", "positives"), ("rejected", "negatives"))}
        )
        assert same(whole, record(row))
        if not isinstance(whole.prompt, str):
            assert [message[0] for message in whole.prompt][::2] == ["user"] * ((len(whole.prompt) + 1) // 2)


# Tools

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bonn"}}}
WITH_TOOLS = (
    "{% if tools %}{{ '<|im_start|>tools\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ '<call>' + (c.function | tojson) }}{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tool_row(**more) -> dict:
    history = [user("Rain?"), {"role": "assistant", "content": None, "tool_calls": [CALL]},
               {"role": "tool", "name": "weather", "content": "no"}, user("And tomorrow?")]  # fmt: skip
    wrong = {"type": "function", "function": {"name": "delete_all", "arguments": {}}}
    return {"prompt": history, "tools": [TOOL], "responses": [
        {"role": "positive", "tool_calls": [CALL]}, {"role": "negative", "text": "Hm", "tool_calls": [wrong]}
    ]} | more  # fmt: skip


def test_tools_reach_the_template_and_calls_are_scored():
    """A negative that calls the wrong tool: the call is what is learned from, the tools stand in the prompt."""
    encoder = tiny.tokenizer(WITH_TOOLS)
    row = encode_row(encoder, record(tool_row()), roles={1, -1}, max_length=2000, ledger=Ledger())
    prompt = encoder.decode(row.prompt_ids)
    assert '"name": "weather"' in prompt and "tool\nno<|im_end|>" in prompt
    good, bad = (encoder.decode(one.ids) for one in row.responses)
    assert good.startswith("<call>") and '"Bonn"' in good and good.endswith("<|im_end|>")
    assert bad.startswith("Hm<call>") and "delete_all" in bad


def test_tools_in_other_spellings_and_back():
    example = record(tool_row())
    assert same(record(tool_row(tools=json.dumps([TOOL]))), example)
    assert same(record(to_row(example)), example) and example.key != record(tool_row(tools=None)).key
    pair = {"prompt": tool_row()["prompt"], "tools": [TOOL],
            "rejected": [said("Hm")],
            "chosen": [{"role": "assistant", "content": "", "tool_calls": [CALL]}]}  # fmt: skip
    assert record(pair).responses[0].calls == example.responses[0].calls
    assert record(pair).prompt == example.prompt


def test_a_template_that_leaves_tools_out_is_told():
    from align.data.templates import TemplateRefuses

    with pytest.raises(TemplateRefuses, match="the model's chat template leaves tools out"):
        encode_row(TOKENIZER, record({"prompt": "Hi", "tools": [TOOL], "negatives": ["a"]}), roles={-1},
                   max_length=500, ledger=Ledger())  # fmt: skip


def test_keys_of_prompts_are_what_they_always_were():
    """Held-out sides and stores hang on them."""
    assert record({"prompt": "Hi", "negatives": ["a"]}).key == "fdda60cb3869b17e"
    assert record({"prompt": [user("Hi") | {"name": "x"}], "negatives": ["a"]}).key == "d7760b4ba3077c46"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tools": "{"}, "'tools' is text, but not JSON"),
        ({"tools": 7}, "'tools' is a number, not a list of objects"),
        ({"tools": [1]}, "'tools' is a list, not a list of objects"),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "is 'image'; only parts of type text",
        ),
        ({"prompt": [{"role": "tools", "content": "x"}]}, "tools are a column of the row"),
        ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content"),
        ({"prompt": [user("a"), {"role": "assistant", "tool_calls": 3}]}, "tool_calls is a number, not a list"),
        ({"responses": [{"role": "negative", "text": 3, "tool_calls": [CALL]}]}, "responses[0].text is a number"),
    ],
)
def test_wrong_tools_and_messages(change, said):
    with pytest.raises(RowError) as error:
        record(tool_row(**change))
    assert said in str(error.value)


# Anything


def test_mutated_rows_raise_row_errors_only():
    """Two thousand rows with a value replaced, dropped, wrapped or nested by chance."""
    draw = random.Random(3)
    wrong = [None, 7, -1.5, float("nan"), 10**400, "", " ", "\ud800", [], {}, [None], {"role": None}, True, ["x"], b"x",
             [[[]]], {"from": "human"}, [{"role": "user"}], "x" * 10_000]  # fmt: skip
    seeds = [row for _, row in pair_formats("p?", "yes", "no")] + [row for _, row in single_formats("p?", "a")]
    seeds += [tool_row(), {"prompt": "p", "completions": ["a", "b"], "labels": [True, False]},
              {"prompt": "p", "responses": [{"text": "ab", "role": "negative",
                                             "steps": [{"end": 1, "label": 1}]}]}]  # fmt: skip

    def mutate(value: object) -> object:
        if draw.random() < 0.25:
            return draw.choice(wrong)
        if isinstance(value, dict):
            return {
                key: mutate(one) if draw.random() < 0.5 else one for key, one in value.items() if draw.random() > 0.05
            }
        return [mutate(one) for one in value] if isinstance(value, list) else value

    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        row = mutate(draw.choice(seeds))
        try:
            example = record(row)
            outcomes["read"] += 1
            assert same(record(to_row(example)), example)
        except RowError as error:
            outcomes["refused"] += 1
            assert str(error)
    assert min(outcomes.values()) > 200, outcomes
