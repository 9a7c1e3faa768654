"""Edits of single words: units, entities, opposites, quantifiers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from align.negatives.edits import NEGATED, WORD, Answer, Edit, exchange, replace, words


def unit_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """The unit behind a number."""
    numbers = "|".join(words.NUMBER_WORDS)
    for found in re.finditer(rf"(?:\d|\b(?:{numbers}))[\s-]?([A-Za-z/]+)\b", answer.text):
        others = words.UNITS.get(found[1], [])
        if others and not answer.is_negated(found.start()):
            yield replace(answer, "unit", *found.span(1), draw.choice(others))


def entity_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """A name or thing for another of its class: one that the prompt names, if there is one."""
    asked = set(re.findall(r"\w+", answer.prompt))
    said = asked | set(re.findall(r"\w+", answer.text))
    for found in WORD.finditer(answer.text):
        others = words.CLASSMATES.get(found[0], [])
        named = [other for other in others if other in said]
        is_topic = not named and found[0] in asked  # of another thing the answer is one to another question
        if others and not is_topic and not _is_as_true(answer, found, others):
            edit = exchange(answer, "entity", found, draw.choice(named or others))
            if edit:
                yield edit


_NO_NAME = re.compile(r"[- ]?\d|\s+(?:di|mon)oxide|\s+(?:out|up|off|down)\b")  # behind it: a label, a verb (black out)
_AS_VERB = re.compile(
    r"\b(?:will|would|can|could|may|might|must|should|to|n['’]t)\s+(?:also\s+|probably\s+|then\s+)?$", re.IGNORECASE
)  # in front of a word in small letters: to star in a film


def _is_as_true(answer: Answer, found: re.Match, others: list[str]) -> bool:
    """Whether another one of the class would be as true, or no word: in a negated sentence, where several are right."""
    is_no_name = _NO_NAME.match(answer.text, found.end()) or (
        found[0].islower() and _AS_VERB.search(answer.before(found.start()))
    )
    also_right = any(other in others for text in answer.others for other in WORD.findall(text))
    return bool(is_no_name) or also_right or answer.is_negated(found.start())


def opposite_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """A word for its opposite."""
    for found in WORD.finditer(answer.text):
        word = found[0]
        new = words.OPPOSITES.get(word.lower())
        is_vague = _VAGUE.search(answer.before(found.start())) or answer.is_negated(found.start())
        if new and not is_vague and (word.islower() or word.istitle()):
            edit = exchange(answer, "opposite", found, new)
            if edit:
                yield edit
    for found in re.finditer(r"(?<!\bany )(?<!\bonce )(?<!\bone )(?<!\bsome )(?<!\bno )(?<!\bor )\b(more|less|fewer)\b"
                             r"(?! or\b| than\b)(?=\s+([a-z]+))", answer.text):  # fmt: skip
        new = "more" if found[1] != "more" else "fewer" if re.search(r"[^s]s$", found[2]) else "less"
        if not answer.is_negated(found.start()):
            yield replace(answer, "opposite", *found.span(1), new)


_VAGUE = re.compile(r"\b(?:may|might|could|can|sometimes|some|either|or)\b(?:\s+\w+){0,3}\s+$", re.IGNORECASE)
_NO_QUANTIFIER = re.compile(
    r"\b(?:not|n't|at|after|above|of|first|second|other|they|we|you|it's|that's|are|how|as|so|too|very|for|nearly|a)\s+$",
    re.IGNORECASE,
)
_FIXED = re.compile(r"\s+(?:caps|right|in particular|special|else|but|about|over|around|along)\b")
_BEHIND_ALL = re.compile(r"\s+(?:of\b|the\b|these\b|those\b)", re.IGNORECASE)


def quantifier_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """How many, how often."""
    names = sorted(words.QUANTIFIERS, key=len, reverse=True)
    for found in re.finditer(rf"\b(?:{'|'.join(names)})\b", answer.text, re.IGNORECASE):
        word, behind = found[0].lower(), answer.text[found.end() :]
        is_negation = NEGATED.fullmatch(word)  # never, nothing, nobody
        if _NO_QUANTIFIER.search(answer.before(found.start())) or _FIXED.match(behind):
            continue
        if not is_negation and answer.is_negated(found.start()):
            continue
        new, end = words.QUANTIFIERS[word], found.end()
        if word in ("all", "both"):  # all the X -> none of the X; all X -> no X
            of = _BEHIND_ALL.match(behind)
            new = new if of else {"all": "no", "both": "neither of the"}[word]
            new += " of" if of and of[0].strip().lower() != "of" else ""
            if not of and not re.match(r"\s+[a-z]+s\b", behind):
                continue
        if word == "most" and not re.match(r"\s+(?:of\b|[a-z]+s\b)", behind):
            continue  # a superlative
        if word in ("half", "twice") and not re.match(r"\s+(?:of\b|as\b|the\b)", behind):
            continue
        yield replace(answer, "quantifier", found.start(), end, new)
