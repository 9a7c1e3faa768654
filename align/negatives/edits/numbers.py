"""Edits of single numbers, in digits or words, where a text computes nothing (else: `equations`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from random import Random

from align.negatives.edits import BEFORE, Answer, Edit, replace
from align.negatives.edits.equations import NUMBER, equation_edits, equations_of, value_of, written
from align.negatives.edits.words import NUMBER_WORDS

_WORDS = NUMBER_WORDS[2:]  # not `one`, which is a pronoun, too
_LABEL = re.compile(
    r"(?:^|\n)[^\S\n]*(?:[#>*-]+\s*)?(?:\**(?:step|part|chapter|option|figure|table|line)\s+)?$", re.IGNORECASE
)
_NAMED = re.compile(r"\b(?:(?:step|part|chapter|option|figure|table|version|line|#)|confidence:?)\s*$", re.IGNORECASE)
_ABOUT = re.compile(
    r"\b(?:about|around|approximately|roughly|nearly|almost|some|estimated)\s+\$?$|~\s*\$?$", re.IGNORECASE
)
_AT_LEAST = re.compile(r"\b(?:more than|over|at least|above|minimum of|greater than|exceeding)\s+\$?$", re.IGNORECASE)
_AT_MOST = re.compile(r"\b(?:less than|under|at most|up to|below|maximum of|fewer than|within)\s+\$?$", re.IGNORECASE)
_ORDINAL = {1: "st", 2: "nd", 3: "rd"}


def number_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """Wrong operands and results where there are equations, else wrong numbers."""
    if equations_of(answer.text):
        yield from equation_edits(answer, draw, "number")
        return
    for found in NUMBER.finditer(answer.text):
        new = _wrong(answer, found, draw)
        if new and not answer.is_negated(found.start()):
            yield replace(answer, "number", found.start(), _behind(answer.text, found), new)
    for found in re.finditer(rf"\b(?:{'|'.join(_WORDS)})\b(?!-)", answer.text, re.IGNORECASE):
        at = _WORDS.index(found[0].lower())
        others = [_WORDS[near] for near in (at - 2, at - 1, at + 1, at + 2) if 0 <= near < len(_WORDS)]
        if not answer.is_negated(found.start()):
            yield replace(answer, "number", *found.span(), draw.choice(others))


def operator_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """Another operation in an equation, and what follows from it."""
    yield from equation_edits(answer, draw, "operator")


def _behind(text: str, found: re.Match) -> int:
    """Where a number ends, the letters of 1st and 22nd included."""
    ordinal = re.compile(r"(?:st|nd|rd|th)\b").match(text, found.end())
    return ordinal.end() if ordinal else found.end()


def _wrong(answer: Answer, found: re.Match, draw: Random) -> str:
    """Another number in the place of one; empty if it is a label, or part of a name, a date in digits, a version."""
    text, (start, end) = answer.text, found.span()
    before, behind = answer.before(start), text[_behind(text, found) :][:BEFORE]
    is_item = _LABEL.search(before) and re.match(r"[.):]", behind)
    if re.fullmatch(r"[12]\d{3}", found[0]) and found[0] in answer.prompt:
        return ""  # the year that was asked about
    if (
        is_item
        or _NAMED.search(before)
        or re.match(r"[-:/.]\d|[A-Za-z]", behind)
        or re.search(r"\d[-:/.,]$|[-–]$", before)
    ):
        return ""
    old = value_of(found[0])
    values = [value for value in _near(old, before, behind) if value != old and value > 0]
    if old == 1 or not values:  # a singular stands behind it
        return ""
    new = draw.choice([value for value in values if value != 1] or values)
    if _behind(text, found) > end:  # an ordinal
        number = int(new)
        return f"{number}{'th' if 10 <= number % 100 <= 20 else _ORDINAL.get(number % 10, 'th')}"
    return written(new, found[0])


def _near(old: Fraction, before: str, behind: str) -> list[Fraction]:
    """Numbers that are wrong in the place of `old`, and might pass for it."""
    if re.match(r"\s?(?:%|percent)", behind):
        lower, higher = [old / 2, old - 20], [old * 2, old + 20, (old + 100) / 2]
        found = higher if _AT_LEAST.search(before) else lower if _AT_MOST.search(before) else lower + higher
        return [value for value in found if 0 < value <= 100]
    if _AT_LEAST.search(before):
        return [old * 3, old * 10]
    if _AT_MOST.search(before):
        return [old / 2, old / 4, old / 10]
    if _ABOUT.search(before):
        return [old * 2, old * 3, old / 2]
    is_whole = old.denominator == 1
    if is_whole and 1000 <= old <= 2100:  # a year, mostly
        return [old + step for step in (-40, -20, -13, -6, 7, 15) if old + step <= 2025]
    if is_whole and old <= 12:
        return [old + step for step in (-2, -1, 1, 2, 3)]
    return [old * 2, old / 2, old * 3, old * 10] + ([old + 10, old - 10] if is_whole and old <= 100 else [])
