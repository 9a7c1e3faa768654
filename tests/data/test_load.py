"""The rows of a recipe: what is used, what is held out, and an entry in the ledger for all that is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align import objectives
from align.data.load import Rows, load
from align.errors import UserError
from align.recipe import Data, Eval, Recipe, Retain, Source
from tests import tiny

NO_SYSTEM = tiny.CHATML.replace(
    "{% for", "{% if messages[0].role == 'system' %}{{ raise_exception('No.') }}{% endif %}{% for", 1
)


def write(file: Path, *rows: dict) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def rows_of(
    train: str, held_out: str, *, template: str = tiny.CHATML, max_length: int = 64, retain: str = "", **data: str
) -> Rows:
    """What the objective DPO gets of two files, and the retain term of a third."""
    recipe = Recipe(
        name="test",
        objective={"name": "dpo"},
        output="nowhere",
        data=Data(sources=[Source(path=train)], max_length=max_length, **data),
        retain=Retain(sources=[Source(path=retain)] if retain else []),
        eval=Eval(sources=[Source(path=held_out)], holdout=0.0),
    )
    return load(recipe, tiny.tokenizer(template), objectives.load("dpo")())


def pair(prompt: object, good: str = "Yes", bad: str = "No") -> dict:
    return {"prompt": prompt, "positives": [good], "negatives": [bad]}


def test_dropped_rows_held_out_are_counted_apart_from_those_of_training(tmp_path):
    train = write(tmp_path / "train.jsonl", pair("a"), pair("b"))
    held_out = write(
        tmp_path / "held.jsonl", pair("c"), pair("d", bad="no " * 200), pair("long " * 200), {"prompt": "e"}
    )
    rows = rows_of(train, held_out, max_length=60, on_bad_rows="skip")
    assert (rows.ledger.read, rows.ledger.used) == (2, 2)
    assert rows.ledger.dropped == {
        "held-out: broken": 1,
        "held-out: response truncated": 1,
        "held-out: row dropped: prompt too long": 1,
    }
    assert rows.ledger.places["held-out: row dropped: prompt too long"] == [f"{held_out}:3"]
    assert [(one.role, len(one.rows)) for one in rows.held_out] == [("negative", 2), ("positive", 2)]
    assert {response.role for response in rows.held_out[0].rows[0].responses} == {-1}


def test_row_that_the_template_refuses_stops_or_is_counted(tmp_path):
    system = pair([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}])
    train, held_out = write(tmp_path / "train.jsonl", pair("a"), system), write(tmp_path / "held.jsonl", pair("c"))
    with pytest.raises(UserError, match=r"train\.jsonl:2: the model's chat template refuses it: No\."):
        rows_of(train, held_out, template=NO_SYSTEM)
    rows = rows_of(train, held_out, template=NO_SYSTEM, on_bad_rows="skip")
    assert (rows.ledger.used, rows.ledger.dropped) == (1, {"row dropped: the chat template refuses it": 1})


def test_retain_rows_keep_their_positives_only_and_are_counted_apart(tmp_path):
    train, held_out = write(tmp_path / "train.jsonl", pair("a")), write(tmp_path / "held.jsonl", pair("c"))
    retain = write(tmp_path / "retain.jsonl", pair("d"), {"prompt": "e", "negatives": ["No"]}, pair("long " * 200))
    rows = rows_of(train, held_out, retain=retain)
    assert (rows.ledger.read, rows.ledger.used) == (1, 1)
    assert [[response.role for response in row.responses] for row in rows.retain] == [[1]]
    assert all(row.retain for row in rows.retain) and not any(row.retain for row in rows.train)
    reasons = ["response unused: negative", "row dropped: no positives", "row dropped: prompt too long"]
    assert {reason for reason in rows.ledger.dropped} == {f"retain: {reason}" for reason in reasons}


def test_retain_without_any_positive_is_refused(tmp_path):
    train, held_out = write(tmp_path / "train.jsonl", pair("a")), write(tmp_path / "held.jsonl", pair("c"))
    retain = write(tmp_path / "retain.jsonl", {"prompt": "e", "negatives": ["No"]})
    with pytest.raises(UserError, match=r"retain\.sources: no row has a positive"):
        rows_of(train, held_out, retain=retain)
