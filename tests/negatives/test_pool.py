"""Rows by prompt, on disk; and the prompts most like another."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from align.data.ledger import Ledger
from align.errors import UserError
from align.negatives import neighbours
from align.negatives.neighbours import Neighbours
from align.negatives.pool import Candidate, Pool, said

ROWS = [
    {"prompt": "A?", "positives": ["a"], "negatives": ["b", "c"]},
    {"prompt": "B?", "responses": [{"text": "x", "role": "negative", "made": {"by": "degrade"}, "reward": -1.0}]},
    {"prompt": "A?", "positives": ["aa"], "negatives": ["d"]},
    {"prompt": "", "positives": ["good"], "negatives": ["bad"]},
    {"prompt": "", "positives": ["fine"], "negatives": ["poor"]},
]
SAMPLED = [
    {"prompt": "B?", "responses": [{"text": "y", "role": "sample"}, {"text": "z", "role": "positive"}]},
    {"prompt": "C?", "negatives": ["w"]},
]


def write(file, rows) -> str:
    file.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in rows))
    return str(file)


def pool(folder, rows=ROWS, files=(), on_bad_rows="stop", ledger=None) -> Pool:
    source = SimpleNamespace(path=write(folder / "rows.jsonl", rows), split="train")
    named = [write(folder / f"{number}.jsonl", own) for number, own in enumerate(files)]
    recipe = SimpleNamespace(
        data=SimpleNamespace(sources=[source], on_bad_rows=on_bad_rows), mining=SimpleNamespace(files=named)
    )
    return Pool(recipe, folder / "pool.jsonl", ledger or Ledger())


def texts(responses) -> list[str]:
    return [one.response["text"] if isinstance(one, Candidate) else one["text"] for one in responses]


def test_rows_of_a_prompt_are_one_prompt(tmp_path):
    found = pool(tmp_path)
    assert len(found) == 4
    first = found[0]
    assert texts(first.positives) == ["a", "aa"] and texts(first.candidates) == ["b", "c", "d"]
    assert first.place.endswith("rows.jsonl:1") and first.head["prompt"] == "A?"
    assert [texts(found[place].candidates) for place in (2, 3)] == [["bad"], ["poor"]]  # no prompt: not the same
    assert found[1].candidates[0].response["made"] == {"by": "degrade"}
    assert found[1].example([found[1].candidates[0].response]).responses[0].reward == -1.0
    found.close()
    assert not (tmp_path / "pool.jsonl").exists()


def test_files_bring_candidates_to_their_prompts(tmp_path):
    ledger = Ledger()
    found = pool(tmp_path, files=[SAMPLED], ledger=ledger)
    second = found[1]
    assert [(one.response["text"], one.origin) for one in second.candidates] == [("x", "own"), ("y", "file")]
    assert second.positives == []  # what another file calls right is neither
    assert len(found) == 4 and ledger.dropped == {"prompt of mining.files that data.sources lack": 1}


def test_broken_rows_are_told_or_counted(tmp_path):
    with pytest.raises(UserError, match=r"rows.jsonl:2: is not valid JSON"):
        pool(tmp_path, [ROWS[0], "{", ROWS[1]])
    ledger = Ledger()
    assert len(pool(tmp_path, [ROWS[0], "{", ROWS[1]], on_bad_rows="skip", ledger=ledger)) == 2
    assert ledger.dropped == {"broken": 1}


def test_what_a_response_says_is_what_a_record_says(tmp_path):
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": "ü"}}}]
    row = {"prompt": "A?", "responses": [{"text": "t", "role": "negative", "tool_calls": calls}]}
    one = pool(tmp_path, [row])[0]
    assert said(one.candidates[0].response) == one.example([one.candidates[0].response]).responses[0].said


@pytest.mark.parametrize("count", [1, 3, 40])
def test_the_nearest_are_those_of_a_plain_search(count, monkeypatch):
    monkeypatch.setattr(neighbours, "_QUERIES", 7)
    monkeypatch.setattr(neighbours, "_ROWS", 11)
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(30, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    may_give = draw.random(30) < 0.7
    found = neighbours.nearest(vectors, may_give, count)
    for one in range(30):
        others = [other for other in range(30) if other != one and may_give[other]]
        wanted = sorted(others, key=lambda other: -float(vectors[one] @ vectors[other]))[:count]
        assert found[one].tolist() == wanted + [-1] * (count - len(wanted))


def test_neighbours_give_positives_that_are_not_held_out(tmp_path):
    rows = [{"prompt": f"{n}?", "positives": [f"right {n}"], "negatives": ["no"]} for n in range(40)]
    rows += [{"prompt": "bare?", "negatives": ["no"]}]
    rows += [{"prompt": [{"role": "user", "content": "Bare? "}], "positives": ["right here, too"]}]
    found = pool(tmp_path, rows)
    vectors = np.eye(42, dtype=np.float32) + 1.0
    near = Neighbours(found, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), 0.3, tmp_path / "table", 40)
    given = set(texts(near.candidates(40, found[40])))
    from align.data.sources import is_held_out

    kept = {f"right {n}" for n in range(40) if not is_held_out(found[n].example(found[n].positives), 0.3)}
    assert given == kept and 20 < len(kept) < 38
    assert "right here, too" in texts(near.candidates(0, found[0]))  # to another question
    assert f"right {0}" not in texts(near.candidates(0, found[0]))
    assert near.candidates(40, found[40])[0].origin.startswith("neighbour ")
    near.close()
    assert not (tmp_path / "table").exists()
