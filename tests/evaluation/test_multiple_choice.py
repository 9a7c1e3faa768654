"""Multiple choice: what counts as right, which rows are questions, and what a run is compared with."""

from __future__ import annotations

import json

import numpy as np
import pytest

from align.data.ledger import Ledger
from align.errors import UserError
from align.evaluation import multiple_choice, rows
from align.evaluation.multiple_choice import PER_TOKEN, SUM, Options, best_weight, measure, questions


def options() -> Options:
    """Three questions; the first option is right. The base gets the first, the policy the first two."""
    base = [np.array([-1.0, -2.0]), np.array([-9.0, -2.0, -4.0]), np.array([-3.0, -3.0])]
    policy = [np.array([-1.0, -2.0]), np.array([-1.9, -2.0, -4.0]), np.array([-3.0, -2.0])]
    lengths = [np.array([1, 1]), np.array([9, 1, 1]), np.array([1, 1])]
    is_right = [np.array([True, False]), np.array([True, False, False]), np.array([True, False])]
    return Options({"base": base, "policy": policy}, lengths, is_right, ["a:1", "a:2", "a:3"])


def test_a_question_is_right_if_its_best_right_answer_is_above_every_wrong_one():
    assert options().correct({"base": 1.0}, SUM).tolist() == [True, False, False], "a tie is wrong"
    assert options().correct({"base": 1.0}, PER_TOKEN).tolist() == [True, True, False]
    assert options().correct({"base": -1.0}, SUM).tolist() == [False, True, False]
    assert options().chance == pytest.approx((1 / 2 + 1 / 3 + 1 / 2) / 3)


def test_scores_are_sums_of_heads():
    both = options().correct({"base": 1.0, "policy": -1.0}, SUM)  # 0, 0 | -7.1, 0, 0 | 0, -1
    assert both.tolist() == [False, False, True]


def test_measure_counts_wins_and_losses_against_the_base():
    result = measure(options(), {"base": {"base": 1.0}, "policy": {"policy": 1.0}, "upside down": {"base": -1.0}})
    assert result["base"][SUM]["accuracy"] == pytest.approx(1 / 3)
    assert result["base"][SUM].keys() == {"accuracy", "interval"}, "it is not compared with itself"
    policy, turned = result["policy"][SUM], result["upside down"][SUM]
    assert policy["accuracy"] == pytest.approx(2 / 3) and policy["change"] == pytest.approx(1 / 3)
    assert (policy["won"], policy["lost"], policy["p"]) == (1, 0, 1.0)
    assert (turned["won"], turned["lost"]) == (1, 1)
    low, high = policy["interval"]
    assert low <= policy["accuracy"] <= high
    assert policy["change_interval"][0] < 0 < policy["change_interval"][1], "one question of three tells nothing"
    json.dumps(result)


def test_best_weight_is_the_smallest_of_the_best():
    found = Options(
        {"base": [np.array([-3.0, -2.0])], "negative": [np.array([-9.0, -1.0])]},
        [np.array([1, 1])],
        [np.array([True, False])],
        ["a:1"],
    )
    scores = {"ratio": {"base": 1.0, "negative": -1.0}}
    assert best_weight(found, scores, SUM, (0.0, 0.1, 0.2, 0.5, 1.0)) == 0.2  # -3 + 9w > -2 + w from 1/8 on


def write(path, *rows) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def test_rows_that_are_no_questions_are_counted(tmp_path):
    good = {"prompt": "Two and two?", "positives": ["Four."], "negatives": ["Five.", "Six."]}
    pair = {"prompt": "Where?", "chosen": "Here.", "rejected": "There."}
    path = write(
        tmp_path / "rows.jsonl",
        good,
        pair,
        {"prompt": "Why?", "negatives": ["So."]},
        {"prompt": "Why not?", "positives": ["So."]},
        {"prompt": "Who?", "positives": ["I.", "You."], "negatives": ["You."]},
        "{broken",
    )
    ledger = Ledger()
    found = questions(path, ledger)
    assert [len(example.responses) for example in found] == [3, 2]
    assert ledger.dropped == {
        "no right answer": 1, "no wrong answer": 1, "an answer is both right and wrong": 1, "broken": 1
    }  # fmt: skip
    assert ledger.read == 6


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"--data: .*no such file"):
        questions(str(tmp_path / "none.jsonl"), Ledger())
    path = write(tmp_path / "rows.jsonl", {"prompt": "Why?", "negatives": ["So."]})
    with pytest.raises(UserError, match="no row can be used") as error:
        multiple_choice.score(None, questions(path, Ledger()), Ledger())
    assert "\n" not in str(error.value)


def test_builtin_questions_are_the_held_out_ones():
    ledger = Ledger()
    found = questions("builtin:pairs", ledger)
    assert len(found) > 10 and not ledger.dropped
    assert rows.data_hash("builtin:pairs") is None


def test_data_hash_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("abc")
    assert rows.data_hash(str(path)).startswith("ba7816bf8f01cfea")
