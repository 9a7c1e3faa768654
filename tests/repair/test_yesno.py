"""Questions of yes or no: balanced, cut in half without a question on both sides; negative bias by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest

from align.data.ledger import Ledger
from align.errors import UserError
from align.repair import bias, yesno


def write(path, *rows: tuple[str, str, str]) -> str:
    text = [json.dumps({"prompt": p, "positives": [right], "negatives": [wrong]}) for p, right, wrong in rows]
    path.write_text("\n".join(text) + "\n")
    return str(path)


def test_as_many_of_either_answer_in_each_half(tmp_path):
    rows = [(f"Is {n} odd?", *(("Yes", "no.") if n % 3 else ("No", "Yes"))) for n in range(24)]
    path = write(tmp_path / "rows.jsonl", *rows, ("Is 1 odd?", "Yes", "No"), ("Which?", "This", "No"))
    ledger = Ledger()
    found = yesno.read(path, ledger)
    assert len(found) == ledger.used == 16 and ledger.read == 26
    assert ledger.dropped == {
        "left out: the other answer has fewer questions": 8, "the same question again": 1,
        "its answers are not yes and no": 1,
    }  # fmt: skip
    learned, measured = yesno.halves(found)
    assert [sum(is_yes for _, is_yes in half) for half in (learned, measured)] == [4, 4]
    assert not {one.key for one, _ in learned} & {one.key for one, _ in measured}
    first, second = yesno.asked(learned[-1:], ("True", "False"))
    assert first.prompt.endswith("?\nAnswer True or False.") and second.prompt.endswith("?\nAnswer False or True.")
    assert first.example().texts("positive") == second.example().texts("positive") == ["False"]
    with pytest.raises(UserError, match="--data: 1 questions are answered by yes and 0 by no"):
        yesno.read(write(tmp_path / "one.jsonl", ("Is it?", "Yes", "No")), Ledger())


def test_figures_by_hand():
    """Of 4 questions whose answer is yes one is answered so, of 4 others none: precision 1, recall 1/4, bias 3/4."""
    is_yes = np.array([True] * 4 + [False] * 4)
    is_right = np.array([True, False, False, False, True, True, True, True])
    found = bias.figures(is_yes, is_right)
    assert found == {
        "bias": 0.75, "precision_of_yes": 1.0, "recall_of_yes": 0.25, "said_yes": 0.125, "accuracy": 0.625,
    }  # fmt: skip
    turned = bias.figures(is_yes, np.array([True] * 4 + [False, False, False, True]))  # yes to 7 of 8
    assert turned["bias"] == pytest.approx(4 / 7 - 1)
    never = bias.figures(is_yes, ~is_yes)
    assert never["bias"] is never["precision_of_yes"] is None and never["accuracy"] == 0.5
