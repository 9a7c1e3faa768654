"""`align preview`: what is shown of a row, in characters and in a page, with everything from the data escaped."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest

from align import objectives
from align.cli import run
from align.data.encode import Encoder
from align.data.options import Data, Source
from align.data.preview import _views, text
from align.data.preview_html import page
from align.errors import UserError
from align.recipe import Eval, Recipe, Weights
from tests import tiny

TOKENIZER = tiny.tokenizer()
ROWS = [
    {"prompt": "Is it?", "source": "x", "responses": [
        {"text": "Good. Bad!", "role": "negative", "reward": -2, "weight": 0.5,
         "steps": [{"end": 5, "label": 1}, {"end": 10, "label": -1}]},
        {"text": "Yes\nno", "role": "positive", "reward": 1},
    ]},
    {"prompt": "broken"},
    {"prompt": "only one", "negatives": ["a"]},
    {"prompt": "long", "positives": ["ok"], "negatives": ["abcdefghij" * 9]},
    {"prompt": "\x1b[31mred <script>alert(1)</script>", "positives": ["\x07"], "negatives": ["<b>"]},
]  # fmt: skip


def views(tmp_path: Path, rows=ROWS, **more):
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = Recipe(
        name="test", objective={"name": "dpo"}, output="nowhere", eval=Eval(holdout=0.0),
        data=Data(sources=[Source(path=str(file))], max_length=100), **more,
    )  # fmt: skip
    return list(_views(Encoder(recipe, TOKENIZER, objectives.load("dpo")()), TOKENIZER))


def test_a_row_by_hand(tmp_path):
    """A token a byte: a prompt of 25, answers of 11 and 7 whose last token is not forwarded: 25 + 10 + 6 packed."""
    shown = text(views(tmp_path, weights=Weights(contradicting_steps=0.0))[0], in_colour=False)
    assert shown.splitlines() == [
        f"{tmp_path}/my.jsonl:1  41 tokens packed, 72 padded: 43% saved",
        "  prompt, not learned: <|im_start|>│u│s│e│r│⏎│I│s│·│i│t│?│<|im_end|>│⏎│<|im_start|>│a│s│s│i│s│t│a│n│t│⏎",
        "- negative, 11 tokens scored, weight 0.5, reward -2",
        "    good step, weight 0: G│o│o│d│.",
        "    bad step: ·│B│a│d│!",
        "    unjudged: <|im_end|>",
        "+ positive, 7 tokens scored, reward 1",
        "    Y│e│s│⏎│n│o│<|im_end|>",
    ]


def test_rows_that_are_not_used_say_why(tmp_path):
    shown = [text(view, in_colour=False) for view in views(tmp_path)]
    assert shown[1].splitlines() == [
        f"{tmp_path}/my.jsonl:2  not used",
        "    broken: has no responses: give 'responses', 'chosen'/'rejected', 'positives'/'negatives' or "
        "'completion'/'label'; its keys are prompt",
    ]
    assert "not used" in shown[2] and "row dropped: no positives (1)" in shown[2]


def test_what_is_cut_is_shown(tmp_path):
    view = views(tmp_path)[3]
    shown = text(view, in_colour=False)
    room = 100 - len(view.prompt)
    assert f"- negative, {room} tokens scored" in shown and f"cut, {91 - room} tokens: " in shown
    assert "response truncated (1)" in shown
    negative = next(one for one in view.responses if one.role == "negative")
    whole = [word for piece in negative.pieces for word in piece.tokens] + list(negative.cut)
    assert "".join(whole) == "abcdefghij" * 9 + tiny.END


def test_the_terminal_is_safe(tmp_path):
    shown = text(views(tmp_path)[4], in_colour=False)
    assert "\x1b" not in shown and "\x07" not in shown and "\\x1b│[│3│1│m│r│e│d" in shown
    assert text(views(tmp_path)[4], in_colour=True).count("\x1b[31m") == 2, "ours: the role and its tokens"


class _Parser(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.open, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [tag] if tag != "meta" else []
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_safe(tmp_path):
    parser = _Parser()
    parser.feed(page(views(tmp_path), "<i>name</i>"))
    parser.close()
    assert (
        not parser.open
        and not {"script", "i", "b"} & (set(parser.tags) - {"b"})
        and "@import" not in "".join(parser.text)
    )
    found = "".join(parser.text)
    assert "<i>name</i>" in found and "<script>alert(1)</script>" in found and "\x1b" not in found
    for word in (
        "good step",
        "bad step",
        "unjudged",
        "not learned",
        "cut, ",
        "weight 0.5",
        "reward -2",
        "no positives",
    ):
        assert word in found


def test_an_answer_that_was_dropped_is_passed_over(tmp_path):
    """The template writes the prompt otherwise before one of two answers; the other one is cut, and shown so."""
    odd = "{% if messages[-1].content == 'odd' %}{{ 'x' }}{% endif %}"
    tokenizer = tiny.tokenizer(odd + tiny.CHATML)
    file = tmp_path / "my.jsonl"
    file.write_text(json.dumps({"prompt": "Hi", "negatives": ["odd", "abcdefghij" * 9]}))
    recipe = Recipe(
        name="test", objective={"name": "npo"}, output="nowhere", eval=Eval(holdout=0.0),
        data=Data(sources=[Source(path=str(file))], max_length=100),
    )  # fmt: skip
    (view,) = _views(Encoder(recipe, tokenizer, objectives.load("npo")()), tokenizer)
    assert view.remarks == ("response dropped: prompt boundary unclear (1)", "response truncated (1)")
    assert [len(response.cut) > 5 for response in view.responses] == [True]


def test_only_what_is_shown_is_read(tmp_path, monkeypatch, capsys, tiny_model):
    file = tmp_path / "my.jsonl"
    good = {"prompt": "a", "positives": ["b"], "negatives": ["c"]}
    file.write_text("".join(json.dumps(good | {"prompt": f"p{n}"}) + "\n" for n in range(3)) + "{broken\n" * 5)
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nmodel: {{path: {tiny_model}, adapter: {{rank: 2}}}}\ndata: {{sources: [{file}]}}\n"
        "objective: {name: dpo}\neval: {holdout: 0, sources: []}\noutput: nowhere\n"
    )
    run(["preview", str(recipe), "--rows", "2"])
    out = capsys.readouterr().out
    assert f"{file}:1" in out and f"{file}:2" in out and "broken" not in out and f"{file}:3" not in out
    run(["preview", str(recipe), "--html", str(tmp_path / "page.html")])
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    with pytest.raises(UserError, match="'0' is no whole number from 1 on"):
        run(["preview", str(recipe), "--rows", "0"])
