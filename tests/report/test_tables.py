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
    assert cells(html) == [
        ["", "", "", "range", "z"],
        ["deep", "", "", "(0.1000 to ?)", ""],
        ["deep", "x", "y", "", "2.000"],
    ]
    assert "<dt>list</dt><dd>[1, 2, 3]</dd>" in html and "<dt>none</dt><dd>-</dd>" in html
    assert "<dt>value</dt>" in tables.measure(3.5) and "<b>" not in tables.measure({"<b>": {"<b>": "<b>"}})
    assert tables.measure({}) == ""
