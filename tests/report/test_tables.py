"""Measures of any shape become rows; each figure stands with its interval."""

from __future__ import annotations

import re

from align.report import tables
from tests.report import worlds


def cells(html: str) -> list[list[str]]:
    rows = re.findall(r"<tr>(.*?)</tr>", html, re.S)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row)] for row in rows]


def test_a_measure_of_several_models():
    html = tables.measure(worlds.evaluations()["measures"]["preference_accuracy"])
    assert cells(html) == [
        ["", "", "value", "change", "won", "lost", "p"],
        ["by sum", "base", "0.4810 (0.3900 to 0.5800)", "", "", "", ""],
        ["by sum", "policy", "0.5120 (0.4200 to 0.6100)", "0.0310 (-0.0200 to 0.0800)", "9", "5", "0.4200"],
    ]
    assert "<dt>unit</dt><dd>share</dd>" in html


def test_measures_of_other_shapes():
    found = {"a": 1, "deep": {"x": {"y": {"z": 2.0}}, "range": [0.1, None]}, "list": [1, 2, 3], "none": None}
    html = tables.measure(found)
    assert cells(html) == [["", "", "z"], ["x", "y", "2.000"]]
    assert '<p class="note">deep</p>' in html and "<dt>range</dt>" in html and " to ?)" in html
    assert "<dt>list</dt><dd>1, 2, 3</dd>" in html and "<dt>none</dt><dd>-</dd>" in html
    assert "<dt>value</dt>" in tables.measure(3.5) and "<b>" not in tables.measure({"<b>": {"<b>": "<b>"}})
    assert tables.measure({}) == ""


def test_each_part_of_a_measure_is_a_table_of_its_own():
    """As `align evaluate` writes them: no row has the columns of another part."""
    counts = {"questions": 9, "right_to_wrong": 2}
    dropped = {"broken": {"count": 1, "first": ["rows.jsonl:3", "rows.jsonl:4"]}}
    found = {
        "measure": "flips", "rows": {"rows_read": 10, "rows_used": 9, "dropped": dropped},
        "metrics": {"right to wrong": {"policy": {"value": 0.25, "interval": [0.1, 0.5]}}},
        "flips": {"by sum": {"policy": counts}, "per token": {"policy": counts}},
        "refusals": [{"model": "base", "prompt": "Why?", "answer": "I <b>cannot</b> [help]"}],
    }  # fmt: skip
    html = tables.measure(found)
    assert cells(html) == [
        ["", "", "value"], ["right to wrong", "policy", "0.2500 (0.1000 to 0.5000)"],
        ["", "", "count", "first"], ["dropped", "broken", "1", "rows.jsonl:3, rows.jsonl:4"],
        ["", "", "questions", "right to wrong"], ["by sum", "policy", "9", "2"], ["per token", "policy", "9", "2"],
        ["model", "prompt", "answer"], ["base", "Why?", "I &lt;b&gt;cannot&lt;/b&gt; [help]"],
    ]  # fmt: skip
    assert "<dt>rows read</dt>" in html and "<dt>measure</dt>" not in html
    assert '<p class="note">refusals</p>' in html and "{" not in html


def test_a_measure_of_several_runs_has_a_row_for_each_model_of_each():
    def found(value: float) -> dict:
        return {"rows": {"rows_read": 9, "rows_used": 8, "dropped": {}}, "flips": {"by sum": {"policy": {"p": 1.0}}},
                "metrics": {"pass@1": {"base": {"value": 0.5}, "policy": {"value": value}}}}  # fmt: skip

    html = tables.measure_of_runs({"one": found(0.25), "other": found(0.75)})
    assert cells(html) == [
        ["", "", "", "value"],
        ["pass@1", "one", "base", "0.5000"], ["pass@1", "one", "policy", "0.2500"],
        ["pass@1", "other", "base", "0.5000"], ["pass@1", "other", "policy", "0.7500"],
    ]  # fmt: skip
    assert "rows used" in html and "<dt>other</dt>" in html
    assert "<dt>accuracy</dt>" in tables.measure_of_runs({"one": {"accuracy": 0.5}})


def test_long_tables_are_folded_up():
    metrics = {f"metric {n}": {"policy": {"value": 0.5}} for n in range(tables.FOLDED)}
    assert "<details>" not in tables.measure({"metrics": metrics})
    assert "<details><summary>25 rows</summary>" in tables.measure({"metrics": metrics | {"one": {"a": {"value": 1}}}})
