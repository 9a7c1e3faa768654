"""Single edits of a good answer that should make it wrong: each kind says where, and by what.

An edit that does not make it wrong after all is refused later (`align.negatives.meaning`, the verifier).
"""

from __future__ import annotations

import bisect
import functools
import re
from dataclasses import dataclass
from itertools import pairwise

from align.judges.segment import segment

WORD = re.compile(r"[A-Za-z]+(?:['’][A-Za-z]+)?")
_KEPT = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^>\n]+>", re.DOTALL)  # code and addresses stay


BEFORE = 60  # characters in front of a word that are looked at
_VOWEL = re.compile(r"[aeio]|u(?!ni|s[ei]|ra)", re.IGNORECASE)  # an hour is not among our words
NEGATED = re.compile(
    r"\b(?:not|no|never|none|nothing|nobody|neither|nor|without|cannot|hardly|unless)\b|n['’]t\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Edit:
    """What replaces what in a text. `start` and `end` are of the part that is wrong by itself; more may follow."""

    kind: str
    start: int
    end: int
    pieces: tuple[tuple[int, int, str], ...]  # (start, end, what stands there afterwards), in order

    def apply(self, text: str) -> tuple[str, tuple[int, int]]:
        """(the text afterwards, where in it the wrong part is)."""
        parts, at, first, last = [], 0, self.start, self.end
        for start, end, new in self.pieces:
            parts += [text[at:start], new]
            at = end
            last += (len(new) - (end - start)) * (end <= self.end)
        return "".join([*parts, text[at:]]), (first, last)


@functools.lru_cache(maxsize=64)
def _cut(text: str) -> tuple[list[int], list[bool], list[tuple[int, int]]]:
    """The end of each sentence or line, whether it says no, and (start, end) of code and addresses."""
    ends = sorted({*segment(text, "sentences"), *segment(text, "lines")})
    negated = [NEGATED.search(text, *span) is not None for span in pairwise([0, *ends])]
    return ends, negated, [found.span() for found in _KEPT.finditer(text)]


@dataclass(frozen=True)
class Answer:
    """A good answer to a prompt, and what its edits are made with."""

    prompt: str
    text: str
    others: tuple[str, ...] = ()  # what else is right

    def sentences(self) -> list[tuple[int, int]]:
        """(start, end) of each sentence or line."""
        return list(pairwise([0, *_cut(self.text)[0]]))

    def sentence_at(self, place: int) -> tuple[int, int]:
        ends = _cut(self.text)[0]
        index = bisect.bisect_right(ends, place)
        return (ends[index - 1] if index else 0), (ends[index] if index < len(ends) else len(self.text))

    def before(self, place: int) -> str:
        """What stands in front of a place, as far as it may matter to a word there."""
        return self.text[max(0, place - BEFORE) : place]

    def is_negated(self, place: int) -> bool:
        """Whether the sentence around a place says no: with another thing in it, it is often as true as before."""
        ends, negated, _ = _cut(self.text)
        index = bisect.bisect_right(ends, place)
        return index < len(ends) and negated[index]

    def is_free(self, start: int, end: int) -> bool:
        """Whether a part lies outside of code and addresses."""
        return not any(first < end and start < last for first, last in _cut(self.text)[2])


def replace(answer: Answer, kind: str, start: int, end: int, new: str) -> Edit:
    """The edit of one part; it keeps a capital, and `a` and `an` follow the new word."""
    old = answer.text[start:end]
    if old[:1].isupper() and not old.isupper():
        new = new[:1].upper() + new[1:]
    article = re.search(r"\b(an?)\s+$", answer.before(start), re.IGNORECASE)
    if article and (_VOWEL.match(old) is None) != (_VOWEL.match(new) is None):
        fitting = article[1][0] + ("n" if _VOWEL.match(new) else "")
        first = start - len(article[0])
        new, start = fitting + answer.text[first + len(article[1]) : start] + new, first
    return Edit(kind, start, end, ((start, end, new),))


def exchange(answer: Answer, kind: str, found: re.Match, new: str) -> Edit | None:
    """A word for another; where the other stands in the same sentence already, the two change places.

    None where that changes nothing: in a list, or between `and` and `or`.
    """
    begin, end = answer.sentence_at(found.start())
    there = re.search(rf"\b{re.escape(new)}\b", answer.text[begin:end])
    if there is None:
        return replace(answer, kind, *found.span(), new)
    one, other = sorted([found.span(), (begin + there.start(), begin + there.end())])
    between = answer.text[one[1] : other[0]]
    if not WORD.search(between) or all(word in ("and", "or", "the", "a", "to") for word in WORD.findall(between)):
        return None
    first, second = answer.text[slice(*one)], answer.text[slice(*other)]
    return Edit(kind, one[0], other[1], ((*one, second), (*other, first)))
