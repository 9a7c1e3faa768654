"""A look at local rows tells which needs none of them can meet."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from align.data import supply
from align.data.supply import lacking

ALL = {"positives", "negatives", "pairs", "responses", "rewards", "behavior", "steps"}


def one(role: str, **more) -> dict:
    return {"prompt": "Hi", "responses": [{"text": "Hello", "role": role, **more}]}


@pytest.fixture
def look(tmp_path):
    """What a file of these rows lacks."""

    def go(rows: list, needs: set[str] = ALL, name: str = "my.jsonl") -> dict[str, int]:
        return lacking([(write(tmp_path / name, *rows), "train")], needs)

    return go


def write(file: Path, *rows: object) -> str:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


# What meets which need

BOTH = {"prompt": "Hi", "positives": ["Yes"], "negatives": ["No"]}
SCORED = {"prompt": "Hi", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1}


@pytest.mark.parametrize(
    "row, met",
    [
        (one("positive"), {"positives", "responses"}),
        (one("negative"), {"negatives", "responses"}),
        (one("sample"), set()),
        (BOTH, {"positives", "negatives", "pairs", "responses"}),
        (one("negative", reward=0), {"negatives", "responses", "rewards"}),
        (one("negative", behavior_logps=[-1.0]), {"negatives", "responses", "behavior"}),
        (one("negative", steps=[{"end": 2, "label": 1}]), {"negatives", "responses", "steps"}),
        (one("negative", steps=[{"end": 2, "label": None}]), {"negatives", "responses"}),
        (SCORED, ALL - {"behavior", "steps"}),
    ],
    ids=["positive", "negative", "sample", "both", "reward", "behavior", "steps", "unjudged", "scored"],
)
def test_what_a_row_can_supply(look, row, met):
    assert look([row]) == dict.fromkeys(ALL - met, 1)


def test_pairs_must_be_in_one_row(look):
    assert look([one("positive"), one("negative")], {"pairs", "positives", "negatives"}) == {"pairs": 2}


def test_one_row_that_can_is_enough(look):
    rows = [one("negative")] * 5
    assert look(rows, {"positives"}) == {"positives": 5}
    assert look([*rows, one("positive")], {"positives"}) == {}


def test_only_what_is_asked_is_told(look):
    assert look([one("sample")], {"rewards"}) == {"rewards": 1}
    assert look([one("sample")], set()) == {}


@pytest.mark.parametrize("need", ["reference", "samples", "mismatched", "ema"])
def test_needs_that_rows_do_not_meet_are_not_looked_for(look, need):
    assert look([one("sample")], {need}) == {}


# Where it looks


def test_all_sources_count_together(tmp_path):
    good = write(tmp_path / "good.jsonl", one("positive"), one("positive"))
    bad = write(tmp_path / "bad.jsonl", one("negative"))
    assert lacking([(good, "train"), (bad, "train")], {"positives", "negatives", "pairs"}) == {"pairs": 3}
    assert lacking([(good, "train")], {"negatives"}) == {"negatives": 2}


def test_globs_and_gzip_are_looked_into(tmp_path):
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.write(json.dumps(one("negative")) + "\n")
    write(tmp_path / "b.jsonl", one("negative"))
    assert lacking([(f"{tmp_path}/*", "train")], {"positives"}) == {"positives": 2}


@pytest.mark.parametrize("split, missing", [("train", {"positives"}), ("heldout", set())])
def test_builtin_sets_are_looked_into_by_their_split(split, missing):
    assert lacking([("builtin:unwanted", split)], {"positives", "negatives", "rewards"}).keys() == missing
    assert lacking([("builtin:pairs", split)], {"pairs"}) == {}


def test_a_large_file_is_not_read_to_its_end(look, monkeypatch):
    monkeypatch.setattr(supply, "ROWS", 3)
    rows = [one("negative")] * 3
    assert look([*rows, "{ broken", one("positive")], {"positives"}) == {"positives": 3}


# Where it cannot tell


def test_a_source_that_cannot_be_looked_at_may_hold_everything(tmp_path):
    local = (write(tmp_path / "my.jsonl", one("negative")), "train")
    table = tmp_path / "my.csv"
    table.write_text("prompt,completion,label\nHi,Hello,true\n")
    for other in ("owner/name", str(table)):
        for order in ([local, (other, "train")], [(other, "train"), local]):
            assert lacking(order, {"positives"}) == {}, order
    assert lacking([local], {"positives"}) == {"positives": 1}


@pytest.mark.parametrize("broken", ["{", {"prompt": "Hi"}, {"prompt": " ", "negatives": ["No"]}, "3"])
def test_broken_rows_have_messages_of_their_own(look, broken):
    assert look([one("negative"), broken], {"positives"}) == {}


def test_a_damaged_file_has_a_message_of_its_own(tmp_path):
    file = tmp_path / "my.jsonl.gz"
    file.write_bytes(b"no gzip at all")
    assert lacking([(str(file), "train")], {"positives"}) == {}


def test_an_empty_file_has_a_message_of_its_own(look):
    assert look([], {"positives"}) == {}


def test_every_need_of_the_rows_is_known():
    """A need that rows must meet and that nobody looks for would be told late; `steps` is the weights' own."""
    from align.objectives import NEEDS

    of_rows = {need for need, who in NEEDS.items() if "the rows" in who or "in the rows" in who}
    assert set(supply._MET_BY) == of_rows | {"steps"}
