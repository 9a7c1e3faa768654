"""A recipe that asks for what its rows or its objective do not have is refused with one line; a sound one is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align import recipe
from align.errors import UserError
from align.objectives import NEEDS

NEGATIVE = {"prompt": "Hi", "negatives": ["No"]}
PAIR = {"prompt": "Hi", "positives": ["Yes"], "negatives": ["No"]}
SAMPLE = {"prompt": "Hi", "responses": [{"text": "Hm", "role": "sample"}]}
SCORED = {"prompt": "Hi", "chosen": "Yes", "rejected": "No", "score_chosen": 3, "score_rejected": 1}


def bad(**more: object) -> dict:
    return {"prompt": "Hi", "responses": [{"text": "No", "role": "negative", **more}]}


REWARDED, LOGGED = bad(reward=0.0), bad(behavior_logps=[-1.0, -0.5])
JUDGED, UNJUDGED = bad(steps=[{"end": 2, "label": -1}]), bad(steps=[{"end": 2, "label": None}])
GRADES = "grades: [{reward: 0, prompt: Bad}, {reward: 1, prompt: Good}]"


def write(file: Path, *rows: dict | str) -> None:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))


@pytest.fixture
def check(tmp_path, monkeypatch):
    """The lines a recipe is refused with, [] for a sound one; `r.yaml` and `my.jsonl` lie in the current folder.

    Line 6 are the sources, line 7 what a test adds.
    """
    monkeypatch.chdir(tmp_path)

    def go(objective: str, rows: list, more: str = "", nat: str = "") -> list[str]:
        write(tmp_path / "my.jsonl", *rows)
        head = f"name: n\noutput: o\nobjective: {{name: {objective}}}\nmodel: {{adapter: {{rank: 2}}}}\n"
        nat = f"  nat: {nat}\n" if nat else ""
        (tmp_path / "r.yaml").write_text(f"{head}data:\n  sources: [my.jsonl]\n{nat}{more}")
        try:
            recipe.load("r.yaml")
        except UserError as error:
            return str(error).split("\n")
        return []

    return go


def none_of(count: int, who: str, need: str) -> str:
    return (
        f"r.yaml:6: data.sources: {who} needs {need}, but none of the first {count} rows can supply it; {NEEDS[need]}"
    )


# What rows must have


def test_pairs_of_negatives_only(check):
    assert check("dpo", [NEGATIVE, NEGATIVE]) == [none_of(2, "objective 'dpo'", "pairs")]
    assert check("dpo", [NEGATIVE, PAIR]) == []


def test_behavior(check):
    assert check("topr", [PAIR]) == [none_of(1, "objective 'topr'", "behavior")]
    assert check("topr", [LOGGED]) == []
    assert check("topr", [PAIR], "reference: {behavior: adapter_off}\n") == []


def test_rewards(check):
    assert check("mmpo", [PAIR]) == [none_of(1, "objective 'mmpo'", "rewards")]
    assert check("mmpo", [SCORED]) == []


@pytest.mark.parametrize("key", ["contradicting_steps", "unjudged_steps"])
def test_weights_of_steps_that_nobody_judged(check, key):
    assert check("npo", [UNJUDGED], f"weights: {{{key}: 0.5}}\n") == [
        "r.yaml:6: data.sources: weights weigh steps, but none of the first 1 rows can supply it; "
        "give rows with judged `steps`, or leave those weights out"
    ]
    assert check("npo", [UNJUDGED], f"weights: {{{key}: 1}}\n") == []
    assert check("npo", [UNJUDGED, JUDGED], f"weights: {{{key}: 0.5}}\n") == []


def test_what_is_not_looked_at_is_not_refused(check, tmp_path):
    """Broken and missing rows, and tables, have messages of their own when they are read."""
    assert check("dpo", []) == [] == check("dpo", [NEGATIVE, "{"])
    assert len(check("dpo", [NEGATIVE])) == 1
    (tmp_path / "my.csv").write_text("prompt,chosen,rejected\nHi,Yes,No\n")
    file = tmp_path / "r.yaml"
    file.write_text(file.read_text().replace("[my.jsonl]", "[my.jsonl, my.csv]"))
    recipe.load("r.yaml")


def test_a_typo_is_not_followed_by_its_consequences(check):
    assert len(check("dpo", [NEGATIVE], "trian: {}\n")) == 1
    assert len(check("dpx", [SAMPLE], "reference: {behavior: adapter_off}\n", "{}")) == 1


# What is set must be used


def test_behavior_for_an_objective_that_does_not_ask(check):
    given = "reference: {behavior: adapter_off}\n"
    assert check("dpo", [PAIR], given) == [
        "r.yaml:7: reference.behavior: objective 'dpo' does not ask who wrote the responses; leave it out"
    ]
    assert check("nll", [PAIR], given) == ["r.yaml:7: reference: objective 'nll' uses none; leave the section out"]


def test_policy_for_an_objective_that_compares_with_none(check):
    assert check("topr", [LOGGED], "reference: {policy: adapter_off}\n") == [
        "r.yaml:7: reference.policy: objective 'topr' compares with no reference; leave it out"
    ]


def test_retain_without_anything_to_retain(check):
    assert check("npo", [NEGATIVE], "retain: {weight: 2}\n") == [
        "r.yaml:7: retain: names neither sources nor positives; give retain.sources, or leave it out"
    ]
    assert check("npo", [PAIR], "retain: {positives: true}\n") == []
    assert check("npo", [NEGATIVE], "retain: {sources: [builtin:retain]}\n") == []
    assert check("npo", [NEGATIVE], "retain: {}\n") == []


@pytest.mark.parametrize("given", ["3", "{source: [builtin:retain]}", "{sources: 3}", "{positives: 3}"])
def test_a_mistake_inside_retain_is_told_once(check, given):
    assert len(check("npo", [NEGATIVE], f"retain: {given}\n")) == 1


@pytest.mark.parametrize("objective, key", [("nll", "negative"), ("npo", "positive"), ("d2o", "positive")])
def test_a_weight_of_responses_that_the_objective_does_not_read(check, objective, key):
    assert check(objective, [PAIR], f"weights: {{{key}: 0.5}}\n") == [
        f"r.yaml:7: weights.{key}: objective '{objective}' reads no {key}s; leave it out"
    ]
    other = {"positive": "negative", "negative": "positive"}[key]
    assert check(objective, [PAIR], f"weights: {{{other}: 0.5, {key}: 1}}\n") == []


# NAT


@pytest.mark.parametrize("objective", ["dpo", "npo", "kto", "d2o"])
def test_nat_with_an_objective_that_reads_negatives(check, objective):
    assert check(objective, [PAIR], nat="{success: Good}") == [
        f"r.yaml:7: data.nat: every response becomes a positive, but objective '{objective}' reads negatives; "
        "use the objective nll, or leave data.nat out"
    ]


def test_nat_makes_positives_of_negatives(check):
    assert check("nll", [NEGATIVE], nat="{success: Good}") == []
    assert check("nll", [NEGATIVE]) == [none_of(1, "objective 'nll'", "positives")]
    assert check("nll", [SAMPLE], nat="{}") == [none_of(1, "data.nat", "responses")]


@pytest.mark.parametrize("key", ["success", "failure"])
def test_grades_beside_success_and_failure(check, key):
    assert check("nll", [REWARDED], nat=f"{{{key}: Well, {GRADES}}}") == [
        "r.yaml:7: data.nat: gives grades beside success and failure; give one of the two"
    ]
    assert check("nll", [REWARDED], nat=f"{{{GRADES}}}") == []
    assert check("nll", [REWARDED], nat=f"{{{key}: Well, grades: []}}") == []


def test_grades_need_rewards(check):
    assert check("nll", [PAIR], nat=f"{{{GRADES}}}") == [none_of(1, "data.nat", "rewards")]


# The copy in the run folder


@pytest.mark.parametrize(
    "objective, rows, more, nat",
    [
        ("nll", [REWARDED], "weights: {positive: 0.5}\n", f"{{{GRADES}}}"),
        ("nll", [PAIR], "", "{success: Good}"),
        ("npo", [JUDGED], "weights: {negative: 0.5, contradicting_steps: 0}\nretain: {positives: true}\n", ""),
        ("topr", [PAIR], "reference: {behavior: adapter_off}\n", ""),
    ],
    ids=["grades", "nat", "weights", "behavior"],
)
def test_the_copy_in_the_run_folder_is_a_sound_recipe(check, tmp_path, objective, rows, more, nat):
    """It says all values, defaults included; none of them may be taken for a mistake."""
    assert check(objective, rows, more, nat) == []
    first = recipe.load("r.yaml")
    (tmp_path / "copy.yaml").write_text(first.to_yaml())
    assert recipe.load("copy.yaml") == first
