"""Edits of whole steps, where the text shows that their order matters; and of the option that is chosen."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from align.negatives.edits import Answer, Edit

_STEP = re.compile(r"^[^\S\n]*(?:[#*>]+\s*)?\**(?:Step\s+)(\d+)\b", re.IGNORECASE | re.MULTILINE)
_ORDERED = re.compile(
    r"\b(?:how (?:to|(?:do|can|would|should) (?:i|we|you|one))|steps?|instructions?|recipe|procedure|process|guide)\b",
    re.IGNORECASE,
)
_ITEM = re.compile(r"^[^\S\n]*(\d{1,2})[.)]\s+", re.MULTILINE)
_OPTION = re.compile(
    r"(?:^|\n|\s)[^\S\n]*[-*]?\s*\(?([A-Ha-h]|[1-8])[.):]\s+(.+?)(?=\s*(?:\n|$)|\s+\(?(?:[B-Hb-h]|[2-8])[.):]\s)"
)
_CHOSEN = re.compile(
    r"(?:\b(?:answer|option|choice)(?:\s+is|:)?\s+|^\s*)\(?([A-Ha-h1-8])\b(?=[.):\s]|$)", re.IGNORECASE
)


def order_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """Two neighbouring steps of a procedure change places."""
    for one, other, _ in _numbered(answer):
        first, second = answer.text[slice(*one)], answer.text[slice(*other)]
        yield Edit("order", one[0], other[1], ((*one, second), (*other, first)))


def drop_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """A step of a procedure is left out; what is wrong is the step that stands there instead."""
    for one, other, renumbered in _numbered(answer):
        new = answer.text[slice(*other)]
        yield Edit("drop", one[0], other[1], ((one[0], other[1], new), *renumbered))


Span = tuple[int, int]


def _numbered(answer: Answer) -> list[tuple[Span, Span, list[tuple[int, int, str]]]]:
    """(step, the next one, pieces that number later steps anew) of `Step 1:` and the like.

    Plain numbers count only under a prompt that asks for a procedure. Steps are without the spaces, and without the
    numbers, that stand around them.
    """
    marks = list(_STEP.finditer(answer.text))
    if len(marks) < 3 and _ORDERED.search(answer.prompt):
        marks = list(_ITEM.finditer(answer.text))
    if len(marks) < 3 or [int(mark[1]) for mark in marks] != list(range(1, len(marks) + 1)):
        return []
    ends, found = [*(mark.start() for mark in marks[1:]), len(answer.text)], []
    bodies = [_stripped(answer.text, mark.end(), end) for mark, end in zip(marks, ends, strict=True)]
    bodies[-1] = (bodies[-1][0], bodies[-1][0] + len(answer.text[slice(*bodies[-1])].partition("\n\n")[0]))
    for index in range(len(marks) - 2):  # what stands behind the last step may not belong to it
        renumbered = [(*mark.span(1), str(int(mark[1]) - 1)) for mark in marks[index + 2 :]]
        found.append((bodies[index], bodies[index + 1], renumbered))
    return found


def _stripped(text: str, start: int, end: int) -> Span:
    body = text[start:end]
    return start + len(body) - len(body.lstrip()), end - (len(body) - len(body.rstrip()))


def option_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """Another one of the options that the prompt lists: its letter, and its text where that stands there, too."""
    options = {found[1].upper(): found[2].strip().rstrip(".") for found in _OPTION.finditer(answer.prompt)}
    chosen = _CHOSEN.search(answer.text)
    if len(options) < 2 or chosen is None or chosen[1].upper() not in options:
        return
    letter = chosen[1].upper()
    for other in draw.sample(sorted(options), len(options)):
        if other == letter or options[other].lower() == options[letter].lower():
            continue
        new = other if chosen[1].isupper() or other.isdigit() else other.lower()
        pieces, end = [(*chosen.span(1), new)], chosen.end(1)
        said = re.compile(re.escape(options[letter]), re.IGNORECASE).search(answer.text, chosen.end())
        if said:
            pieces, end = [*pieces, (*said.span(), options[other])], said.end()
        yield Edit("option", chosen.start(1), end, tuple(pieces))
