"""Tokenized rows made by hand or by a seed, for the tests of layout, sharing out and collating."""

from __future__ import annotations

import dataclasses
import random

from align.data.examples import Example
from align.data.tokenize import TokenizedResponse, TokenizedRow

PAD = 99


def row(prompt: list[int], *responses: TokenizedResponse, name: str = "Hi") -> TokenizedRow:
    return TokenizedRow(tuple(prompt), responses, Example(name, (), "by hand", "my.jsonl:1"))


def answer(*ids: int, role: int = -1, weight: float = 1.0, reward: float | None = None) -> TokenizedResponse:
    return TokenizedResponse(ids, role, weight, reward)


def held(one: TokenizedRow) -> TokenizedRow:
    """As a row of the retain term."""
    return dataclasses.replace(one, retain=True)


def some_rows(count: int, seed: int = 0, longest: int = 9) -> list[TokenizedRow]:
    """Rows of unequal lengths, with one to four responses of all roles; each token number occurs once."""
    draw = random.Random(seed)
    numbers = iter(range(100, 1_000_000))

    def ids(most: int) -> list[int]:
        return [next(numbers) for _ in range(draw.randint(1, most))]

    return [
        row(
            ids(longest),
            *(answer(*ids(longest), role=draw.choice([1, 0, -1])) for _ in range(draw.randint(1, 4))),
            name=f"Prompt {index}",
        )
        for index in range(count)
    ]
