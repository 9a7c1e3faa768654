"""Questions of yes or no: balanced, cut in half without a question on both sides, asked in both orders."""

from __future__ import annotations

import json

import pytest

from align.errors import UserError
from align.evaluation import rows
from align.evaluation.negative_bias import answer_of
from align.repair import yesno


def write(path, *questions: tuple[str, str, str]) -> str:
    text = [json.dumps({"prompt": p, "positives": [right], "negatives": [wrong]}) for p, right, wrong in questions]
    path.write_text("\n".join(text) + "\n")
    return str(path)


def test_as_many_of_either_answer_in_each_half(tmp_path):
    questions = [(f"Is {n} odd?", *(("Yes", "no.") if n % 3 else ("No", "Yes"))) for n in range(24)]
    more = (("Is 1 odd?", "Yes", "No"), ("Which?", "This", "No"))
    given = rows.given(write(tmp_path / "rows.jsonl", *questions, *more))
    learned, measured = (half.examples for half in yesno.halves(given))
    assert (given.ledger.read, given.ledger.used) == (26, 16)
    assert sorted(given.ledger.dropped.values()) == [1, 1, 8]
    assert [sum(map(answer_of, half)) for half in (learned, measured)] == [4, 4]
    assert [len(half) for half in (learned, measured)] == [8, 8]
    assert not {one.key for one in learned} & {one.key for one in measured}
    first, second = yesno.asked(learned[-1:])
    assert first.prompt.endswith("?\nAnswer Yes or No.") and second.prompt.endswith("?\nAnswer No or Yes.")
    assert first.example().texts("positive") == second.example().texts("positive") == ["No"]
    assert first.example().texts("negative") == ["Yes"]


def test_too_few(tmp_path):
    path = write(tmp_path / "few.jsonl", ("Is it?", "Yes", "No"), ("Is he?", "No", "Yes"))
    with pytest.raises(UserError, match=r"--data: no row can be used .* give at least two questions of either answer"):
        yesno.halves(rows.given(path))
