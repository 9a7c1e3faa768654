"""Whether two answers say the same, by rules: numbers by value, double negation, order of operands, articles."""

from __future__ import annotations

import re
from fractions import Fraction

from align.negatives.edits.equations import NUMBER, equations_of, numbers_of, value_of
from align.negatives.edits.words import NUMBER_WORDS

_CONTRACTIONS = ((re.compile(r"\b(?:ca|sha)n['’]t\b"), "can not"), (re.compile(r"\bwon['’]t\b"), "will not"),
                 (re.compile(r"n['’]t\b"), " not"), (re.compile(r"\bcannot\b"), "can not"))  # fmt: skip
_DOUBLE = re.compile(
    r"\bnot\s+(?:not|never)\s+|\bnot\s+(?:un|in|im)(?=(?:common|usual|likely|able|possible|correct|safe)\b)"
)
_NUMBER = re.compile(rf"({NUMBER.pattern})(?:\s?/\s?(\d+))?(?!\w)")
_SPACED = re.compile(r"\s*([-+*/=×<>^])\s*(?=[\w(])")
_SUM = re.compile(r"(?<![\w./*+×-])(\w+([+*×])\w+(?:\2\w+)*)(?![-+*×/^(\w])")
_LIST = re.compile(r"\b(\w+) (and|or) (\w+)\b")
_PUNCTUATION = re.compile(r"[^\w\s+*/=<>%$^.-]|\.(?!\d)|(?<!\w)-(?!\d)")
_FILLERS = re.compile(r"\b(?:an?|the|that|very|really|quite)\s+(?=\w)")
_UNITS = {"hrs": "hours", "mins": "minutes", "kilometres": "kilometers", "metres": "meters", "litres": "liters"}
NON_COMMITTAL = re.compile(
    r"\s*(?:i have no comment|i (?:do not|don['’]t) (?:know|understand)(?: for sure)?|it depends|i['’ a]*m not sure|"
    r"unknown|nothing\b.{0,40}|there is no (?:answer|definitive)\b.*|no comment)\s*\.?\s*",
    re.IGNORECASE,
)  # what may be said of anything


def normal_form(text: str) -> str:
    """The same for texts that say the same by these rules."""
    text = text.lower().replace("−", "-")
    for pattern, plain in _CONTRACTIONS:
        text = pattern.sub(plain, text)
    text = _DOUBLE.sub("", text)
    text = re.sub(rf"\b(?:{'|'.join(NUMBER_WORDS)})\b", lambda found: str(NUMBER_WORDS.index(found[0])), text)
    text = _NUMBER.sub(_plain_number, text)
    text = _PUNCTUATION.sub(" ", _SUM.sub(_in_order, _SPACED.sub(r"\1", text)))
    text = " ".join(_UNITS.get(word, word) for word in _FILLERS.sub(" ", text).split())
    return _LIST.sub(lambda found: f" {found[2]} ".join(sorted((found[1], found[3]))), text)


def _plain_number(found: re.Match) -> str:
    below = int(found[2] or 1)
    return found[0] if below == 0 else str(value_of(found[1]) / Fraction(below))


def _in_order(found: re.Match) -> str:
    """Operands of + or * in alphabetical order."""
    return found[2].join(sorted(part.strip() for part in found[1].split(found[2])))


_RESULT = re.compile(
    rf"(?:^a:|####|\banswer(?:\s+is)?:?)\s*\$?{NUMBER.pattern}\D{{0,20}}\Z", re.IGNORECASE | re.MULTILINE
)


def result_of(text: str) -> Fraction | None:
    """The number that a worked solution, or an answer marked as such (`A: 5`), ends in; None for other texts.

    Whatever stands in between, a solution that arrives at the right one is not wrong.
    """
    numbers = numbers_of(text)
    return value_of(numbers[-1][0]) if numbers and (equations_of(text) or _RESULT.search(text)) else None


def same(one: str, other: str) -> bool:
    return normal_form(one) == normal_form(other)
