"""Cuts an answer into steps. Formulas in $, $$, \\( or \\[, environments and code blocks stay whole."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from itertools import pairwise

from align.errors import UserError

_WHOLE = re.compile(
    r"```.*?(?:```|\Z)|\$\$.*?\$\$|\\\[.*?\\\]|\\\(.*?\\\)|\\begin\{(?P<name>[a-zA-Z]+\*?)\}.*?\\end\{(?P=name)\}"
    r"|(?<![\\$])\$(?![\s\d])[^$\n]*?(?<![\s\\])\$|(?<![\\$])\$\d[^$\n]*?[\\^_=][^$\n]*?\$",  # $5 is money
    re.DOTALL,
)
_LINE = re.compile(r"\n+[^\S\n]*")
_SENTENCE = re.compile(r"(?:[.!?。！？][\"')\]]*(?:\s+|\Z)|\n\s*\n\s*|[。！？])")
_MARKER = re.compile(
    r"^[^\S\n]*(?:#+\s*)?(?:\**step\s+\d+\b|\d{1,2}[.)]\s|[-*•]\s|(?:first|second|third|then|next|finally|therefore)\b[,:])",
    re.IGNORECASE | re.MULTILINE,
)
_SHORT = re.compile(
    r"(?:\b(?:e\.g|i\.e|cf|vs|etc|Mr|Mrs|Ms|Dr|Prof|St|No|Eq|Fig|approx)|\b[A-Z]|(?:^|\n)\s*\d{1,2})\.\s*$"
)


def segment(text: str, how: str = "auto") -> tuple[int, ...]:
    """The character offset after each step of `text`, ascending; the last is its length.

    `how`: lines | sentences | markers ("Step 1:", "2.", "- ", "Then,") | wtpsplit (a model; the package must be
    installed) | auto: markers where there are two or more, else lines, else sentences. The space behind a step
    belongs to it.
    """
    if not text.strip():
        return ()
    if how == "auto":
        found = next(
            (ends for ends in map(lambda way: segment(text, way), ("markers", "lines")) if len(ends) > 1), None
        )
        return found or segment(text, "sentences")
    return _tidy(text, WAYS[how](text))


def _lines(text: str) -> list[int]:
    return [found.end() for found in _LINE.finditer(text)]


def _sentences(text: str) -> list[int]:
    return [found.end() for found in _SENTENCE.finditer(text) if not _SHORT.search(text[: found.end()])]


def _markers(text: str) -> list[int]:
    return [found.start() for found in _MARKER.finditer(text)]


def _wtpsplit(text: str) -> list[int]:
    pieces, ends = _splitter().split(text), [0]
    for piece in pieces:
        ends.append(ends[-1] + len(piece))
    return ends


@functools.lru_cache(maxsize=1)
def _splitter():
    """The sentence model that the paper used (SaT)."""
    try:
        from wtpsplit import SaT
    except ImportError:
        fix = "pip install wtpsplit, or judges.segment: auto"
        raise UserError("judges.segment", "wtpsplit is not installed", fix) from None
    return SaT("sat-3l-sm")


WAYS: dict[str, Callable[[str], list[int]]] = {
    "lines": _lines, "sentences": _sentences, "markers": _markers, "wtpsplit": _wtpsplit
}  # fmt: skip


def _tidy(text: str, ends: Iterable[int]) -> tuple[int, ...]:
    """The ends that are not inside a formula or a code block and that close a piece with a word or number in it."""
    whole = [found.span() for found in _WHOLE.finditer(text)]
    inner = sorted({end for end in ends if 0 < end < len(text) and not any(a < end < b for a, b in whole)})
    kept: list[int] = []
    for begin, end in pairwise([0, *inner, len(text)]):
        has_word = any(c.isalnum() for c in text[begin:end])
        if kept and not has_word:
            kept[-1] = end  # bare punctuation goes with the step before it
        elif has_word:
            kept.append(end)
    return tuple(kept) or (len(text),)
