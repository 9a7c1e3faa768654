"""The pairs of a row as repair looks at them: each negative against the positives beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

from align.data.examples import Example, Response


class Pair(NamedTuple):
    """A negative of a row that has positives."""

    example: Example
    index: int  # of the negative among the responses

    @property
    def negative(self) -> Response:
        return self.example.responses[self.index]

    @property
    def positives(self) -> list[str]:
        return self.example.texts("positive")

    @property
    def prompt(self) -> str:
        """What names the prompt; rows without one have nothing in common."""
        return self.example.key if self.example.prompt != "" else str(self.example.place)

    @property
    def id(self) -> str:
        """16 hex digits that name prompt, positives and negative, wherever they stand."""
        named = json.dumps([self.example.key, self.positives, self.negative.said])
        return hashlib.sha256(named.encode()).hexdigest()[:16]

    @property
    def is_alone(self) -> bool:
        """Whether the row is one positive and one negative: then a wrong label of one is a wrong label of both."""
        return sum(one.role != "sample" for one in self.example.responses) == 2


def pairs_of(example: Example) -> Iterator[Pair]:
    """A pair for each negative; none of a row without positives."""
    if example.texts("positive"):
        for index, response in enumerate(example.responses):
            if response.role == "negative":
                yield Pair(example, index)
