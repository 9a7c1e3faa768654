"""Text that cannot be trusted, and numbers."""

from __future__ import annotations

import json

import pytest

from align.report import markup
from tests.report.worlds import HOSTILE


@pytest.mark.parametrize("shown", [markup.text, markup.passage, markup.attribute])
def test_no_markup_and_no_control_character_gets_through(shown):
    found = shown(HOSTILE + "\ud800")
    assert not set(found) & set("<>\"'\x1b\x00\x07\u202e\ud800")
    assert r"\x1b[31mred" in found and r"\u202e" in found and "&lt;script&gt;" in found


def test_lines_and_tabs_stay_in_passages_alone():
    assert markup.passage("a\n\tb\r") == "a\n\tb\\r" and markup.text("a\n\tb") == r"a\n\tb"


def test_huge_texts_are_cut_and_say_so():
    found = markup.passage("x" * 10_000_000)
    assert len(found) < 2 * markup.LONGEST and found.endswith("… (9,996,000 more characters in the file)")


def test_json_in_a_script_cannot_end_it():
    found = markup.script_json({HOSTILE: [HOSTILE, 1.5]})
    assert not set(found) & set("<>&") and json.loads(found) == {HOSTILE: [HOSTILE, 1.5]}


@pytest.mark.parametrize(
    "value, shown",
    [(0.0, "0.000"), (-1.17423, "-1.174"), (0.00012346, "0.0001235"), (1e-9, "1.000e-09"), (123456, "123,456"),
     (1234.5678, "1,235"), (5989712.25, "5,989,712"), (12345678.9, "1.235e+07"), (3000.0, "3,000"), (0.5, "0.5000")],
)  # fmt: skip
def test_numbers(value, shown):
    assert markup.number(value) == f'<data value="{value!r}">{shown}</data>'


def test_what_is_no_number_is_text():
    assert (markup.number(None), markup.number(True), markup.number("<b>")) == ("-", "True", "&lt;b&gt;")
    assert markup.number(float("nan")) == '<data value="nan">nan</data>'
