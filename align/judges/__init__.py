"""Who says whether an answer, or a step of it, is right.

`verifiers` judge whole answers by their end, `segment` cuts answers into steps, and the other modules hold one judge of
steps each, put together by `consensus`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from align.data.examples import Example

Scores = list[float | None]  # for each step how sure the judge is that it is right, in [0, 1]; None: it cannot tell


class Answer(NamedTuple):
    """An answer cut into steps: step i is `text[ends[i-1]:ends[i]]`."""

    example: Example  # the prompt with its roll-outs and what is known to be right
    text: str
    ends: tuple[int, ...]  # character offset after each step, ascending

    @property
    def steps(self) -> list[str]:
        return [self.text[begin:end] for begin, end in zip((0, *self.ends), self.ends, strict=False)]


class Judge(Protocol):
    """A judge of steps."""

    name: str
    good: float  # the least score with which a step counts as right
    made_by: dict  # what its scores depend on, for the file beside them

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """Scores of the steps of each answer."""
