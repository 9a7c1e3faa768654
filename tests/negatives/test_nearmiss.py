"""Near misses of rows: what is refused, what is recorded, the order of rows; the command, also killed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align.cli import run
from align.data.examples import Example, Response, parse_row, to_row
from align.data.sources import HOLDOUT, is_held_out
from align.errors import UserError
from align.judges import verifiers
from align.judges.options import Verifier
from align.negatives.nearmiss import KINDS, NearMisses

SOLUTION = "He walks 3*60=180 miles.\nThen 180-135=45 miles more.\nA: 45"
PROMPT = "He walks 3 hours at 60 mph, and comes 135 miles back. How far is he?"


def example(prompt: str, *positives: str, negatives: tuple[str, ...] = ()) -> Example:
    answers = [Response(text, "positive") for text in positives] + [Response(text, "negative") for text in negatives]
    return Example(prompt, tuple(answers), "tests", "rows:1")


def near_misses(row: Example, *others: Example, **options) -> list[Response]:
    return NearMisses([row, *others], **options).of(row)


def test_what_is_recorded():
    (found,) = near_misses(example("Is it hot?", "The sun is hot. It shines."), kinds=["negation"], most=1)
    assert found.role == "negative"
    told, steps = json.loads(found.made), [(step.end, step.label) for step in found.steps]
    start, end = told.pop("span")
    if found.text.startswith("The sun is not hot"):
        assert found.text[start:end] == "is not" and told == {"by": "near-miss", "kind": "negation", "was": "is"}
        assert steps == [(start, 1), (end, -1), (len(found.text), None)]
    else:
        raise AssertionError(found.text)


def test_an_edit_at_the_beginning_or_end():
    (found,) = near_misses(example("Is it?", "Yes"), kinds=["negation"])
    assert found.text == "No" and [(step.end, step.label) for step in found.steps] == [(2, -1)]


def test_what_is_right_or_there_already_is_refused():
    assert near_misses(example("Is it?", "It is big.", "It is not big"), kinds=["negation"]) == []
    assert near_misses(example("Is it?", "It is big.", negatives=("it is NOT big",)), kinds=["negation"]) == []
    twice = [example("Is it?", "It is big."), example("Is it?", "It is not big.")]  # another row of the prompt
    assert near_misses(*twice, kinds=["negation"]) == []


def test_a_verifier_has_the_last_word():
    row, verify = example(PROMPT, SOLUTION), verifiers.load(Verifier(name="numeric"))
    found = near_misses(row, verify=verify, most=20)
    kinds = {json.loads(one.made)["kind"] for one in found}
    assert {"number", "operator"} <= kinds and all(verify(row, one.text).is_right is False for one in found)
    yes = verifiers.load(Verifier(name="tests.negatives.test_nearmiss.all_right"))
    assert near_misses(row, verify=yes, most=20) == []


def all_right(prompt, text, positives):
    return True


def test_a_solution_that_arrives_at_the_right_result_is_not_wrong():
    """Units, negations and steps in another order leave 45 where it was; without a verifier, too."""
    found = near_misses(example(PROMPT, SOLUTION), most=20)
    assert {json.loads(one.made)["kind"] for one in found} == {"number", "operator"}
    assert all(not one.text.endswith(" 45") for one in found)
    marked = example("How many?", "It has not 3 legs but 4 hours.\nA: 4")
    assert all(not one.text.endswith("A: 4") for one in near_misses(marked, most=20))


def test_kinds_take_turns_and_neighbours_come_last():
    rows = [
        example("How many legs has a cat in winter?", "It has four legs. The cat is big and hot."),
        example("How many days has the winter?", "It lasts for ninety days. The wind is cold and wet."),
    ]
    rows += [example(f"What is {word}?", word) for word in ("tea", "milk")]
    kinds = [json.loads(one.made)["kind"] for one in near_misses(*rows, most=50)]
    assert kinds.count("neighbour") == 1 and kinds[-1] == "neighbour"
    assert len(set(kinds[:3])) == 3


def test_answers_of_neighbours_that_may_be_right_are_refused():
    row = example("Which cell part makes energy for the cell?", "mitochondria")
    same = example("Which cell part makes most energy?", "the mitochondrion")
    alike = example("For the cell, which cell part makes energy?", "a nucleus")  # may ask for the same
    other = example("Which cell part stores energy?", "a vacuole")
    far = [example(f"What is {word}?", word) for word in ("tea", "milk", "bread", "salt")]
    (found,) = near_misses(row, same, alike, other, *far, kinds=["neighbour"])
    told = json.loads(found.made)
    assert found.text == "a vacuole" and told["of"] == other.key and told["span"] == [0, 9]
    assert [(step.end, step.label) for step in found.steps] == [(9, -1)]


def test_yes_and_no_of_neighbours():
    """Another question's `No, ...` is what is right here, too; a noun is no answer to a question of yes or no."""
    far = [example(f"What is {word}?", word) for word in ("tea", "milk", "bread", "salt")]
    row = example("Are there cats that bark loudly?", "No, all of them mew")
    for answer, count in (("No, carpets cannot swim", 0), ("Yes, dogs often do that", 1), ("Christians do it all", 0)):
        others = [example("Are there dogs that bark loudly at night?", answer), *far]
        assert len(near_misses(row, *others, kinds=["neighbour"])) == count, answer


def test_what_is_held_out_gives_no_answers_to_others():
    """Thirty times four prompts ask alike; those that a recipe would hold out are no prompt's neighbours."""
    rows = [example(f"Which cat{n // 4} is number{n}?", f"{chr(65 + n % 26)}{n}x") for n in range(120)]
    held_out = {row.key for row in rows if is_held_out(row, HOLDOUT)}
    makes = NearMisses(rows, kinds=["neighbour"])
    of = [json.loads(one.made)["of"] for row in rows for one in makes.of(row)]
    assert held_out and len(of) > 50 and not held_out & set(of)


def test_nothing_is_wrong_in_what_is_invented():
    assert near_misses(example("Write a story about 3 cats.", "There are 3 cats. The sun is hot.")) == []


def test_order_of_rows_and_seed():
    rows = [example(f"How many {word}s has it?", f"It has {n} {word}s. It is big.") for n, word in
            enumerate(("leg", "wing", "eye", "tooth"), 4)]  # fmt: skip
    forth, back = NearMisses(rows, most=3), NearMisses(rows[::-1], most=3)
    assert [forth.of(row) for row in rows] == [back.of(row) for row in rows]
    assert [forth.of(row) for row in rows] != [NearMisses(rows, most=3, seed=1).of(row) for row in rows]


def test_the_record_keeps_how_a_response_was_made():
    row = {"prompt": "Hi", "responses": [{"text": "No", "role": "negative", "made": {"by": "hand", "n": [1]}}]}
    read = parse_row(row, source="rows", place="rows:1")
    assert read.responses[0].made == '{"by": "hand", "n": [1]}'
    assert to_row(read)["responses"][0]["made"] == {"by": "hand", "n": [1]}


@pytest.fixture
def rows(tmp_path) -> Path:
    file = tmp_path / "rows.jsonl"
    lines = [{"prompt": f"How old is cat {n}?", "positives": [f"The cat is {n} years old."], "negatives": []}
             for n in range(20, 220)]  # fmt: skip
    lines += [{"prompt": "Hm?", "negatives": ["Hm."]}, {"prompt": "Is it?", "positives": ["Hm."]}]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "no json\n")
    return file


def test_the_command_and_going_on_with_it(rows, tmp_path, capsys):
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run(["negatives", "near-miss", str(rows), "--out", str(whole), "--n", "3", "--kinds", "number,negation"])
    told = capsys.readouterr().out
    assert "broken: 1 rows left out" in told and "202 rows" in told and "2 rows gave none, 1 of them have no" in told
    about = json.loads(whole.with_suffix(".json").read_text())
    assert about["rows"] == 202 and about["rows_without"] == 2 and about["finished"]
    read = [parse_row(json.loads(line), source="", place="") for line in whole.read_text().splitlines()]
    assert all(len(one.texts("negative")) >= 2 for one in read[:200])
    run(["negatives", "near-miss", str(rows), "--out", str(cut), "--n", "3", "--kinds", "number,negation"])
    cut.write_bytes(cut.read_bytes()[:9000])  # as a kill leaves it
    facts = json.loads(cut.with_suffix(".json").read_text())
    cut.with_suffix(".json").write_text(json.dumps(facts | {"finished": None}))
    run(["negatives", "near-miss", str(rows), "--out", str(cut), "--n", "3", "--kinds", "number,negation"])
    assert cut.read_bytes() == whole.read_bytes()
    with pytest.raises(UserError, match="was made with seed 0, now it is 1"):
        run(
            [
                "negatives",
                "near-miss",
                str(rows),
                "--out",
                str(cut),
                "--n",
                "3",
                "--kinds",
                "number,negation",
                "--seed",
                "1",
            ]
        )


@pytest.mark.parametrize(
    ("more", "what"),
    [
        (["--kinds", "numbre"], "--kinds: there is no kind 'numbre'; did you mean 'number'?"),
        (["--verifier", "numerik"], "--verifier: there is no 'numerik' here; did you mean 'numeric'?"),
        (["--n", "0"], "'0' is no whole number from 1 on"),
        (["--out", "x.json"], "--out: x.json is not named .jsonl"),
        (["--out", "ROWS"], "is one of the files that are read"),
    ],
)
def test_user_errors(more, what, rows, tmp_path):
    out = [] if "--out" in more else ["--out", str(tmp_path / "o.jsonl")]
    with pytest.raises(UserError) as raised:
        run(["negatives", "near-miss", str(rows), *out, *(str(rows) if word == "ROWS" else word for word in more)])
    assert what in str(raised.value)


def test_every_kind_is_known():
    assert len(set(KINDS)) == len(KINDS) == 11
