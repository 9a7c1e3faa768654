"""Negatives that should teach less, to tell what near-miss negatives teach: Likra's controls (arXiv 2503.14391).

`near_miss`: wrong answers to the question itself. `other_questions`: wrong answers to other questions of the set, so
that what is learned is what wrong answers look like. `irrelevant`: answers of another data set: not even that.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from align.data.examples import Example, Response


def near_miss(examples: Sequence[Example], seed: int) -> list[Example]:
    """One of each question's own negatives, drawn at random, beside one of its positives."""
    draw = random.Random(f"near-miss/{seed}")
    return [_with(example, draw, draw.choice(example.texts("negative"))) for example in examples]


def other_questions(examples: Sequence[Example], seed: int) -> list[Example]:
    """A negative of another question, which is no answer of this one. Raises ValueError if there is none."""
    draw, found = random.Random(f"other/{seed}"), []
    for example in examples:
        own = {response.said for response in example.responses}
        others = [text for other in examples if other.key != example.key for text in other.texts("negative")]
        open_ = [text for text in others if text not in own]
        if not open_:
            raise ValueError(f"{example.place}: no other question has a negative that this one lacks")
        found.append(_with(example, draw, draw.choice(open_)))
    return found


def irrelevant(examples: Sequence[Example], strangers: Sequence[Example], seed: int) -> list[Example]:
    """A negative of another data set."""
    draw, texts = random.Random(f"irrelevant/{seed}"), [text for one in strangers for text in one.texts("negative")]
    return [_with(example, draw, draw.choice(texts)) for example in examples]


def _with(example: Example, draw: random.Random, negative: str) -> Example:
    positives = [response for response in example.responses if response.role == "positive"]
    return dataclasses.replace(example, responses=(draw.choice(positives), Response(negative, "negative")))
