"""The prompts nearest to a prompt, by the words they share: cosine of TF-IDF.

A word weighs (1 + log n) log(N / d): n times in the prompt, in d of the N different prompts. Compared are prompts that
share one of the `RARE` rarest words that both have; words that more than `SPREAD` prompts have do not count for that.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from align.data.examples import Example, Prompt
from align.data.messages import split_tools

RARE, SPREAD = 12, 500
_WORD = re.compile(r"\w+")


def text_of(prompt: Prompt) -> str:
    """What a prompt says, of whatever turns."""
    messages, _ = split_tools(prompt)
    return messages if isinstance(messages, str) else "\n".join(message[1] for message in messages)


class SimilarPrompts:
    """Finds prompts among those of `examples`; the same whatever their order."""

    def __init__(self, examples: Iterable[Example]):
        counts = {one.key: Counter(_WORD.findall(text_of(one.prompt).lower())) for one in examples}
        self._often = Counter(word for count in counts.values() for word in count)
        self._vectors = {key: self._vector(count, len(counts)) for key, count in sorted(counts.items())}
        self._index: dict[str, list[str]] = defaultdict(list)
        for key, vector in self._vectors.items():
            for word in self._rarest(vector):
                self._index[word].append(key)

    def nearest(self, key: str, most: int) -> list[tuple[float, str]]:
        """(similarity, key) of the nearest other prompts, the nearest first."""
        own = self._vectors[key]
        others = {other for word in self._rarest(own) for other in self._index[word]} - {key}
        scored = [(self._cosine(own, self._vectors[other]), other) for other in others]
        return sorted(scored, key=lambda one: (-one[0], one[1]))[:most]

    def _vector(self, count: Counter, num_prompts: int) -> dict[str, float]:
        """word -> its weight, in alphabetical order, of length 1."""
        weights = {
            word: (1 + math.log(number)) * math.log(num_prompts / self._often[word])
            for word, number in sorted(count.items())
        }
        length = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {word: weight / length for word, weight in weights.items()}

    def _rarest(self, vector: dict[str, float]) -> list[str]:
        shared = (word for word in vector if 1 < self._often[word] <= SPREAD)
        return sorted(shared, key=lambda word: (self._often[word], word))[:RARE]

    @staticmethod
    def _cosine(one: dict[str, float], other: dict[str, float]) -> float:
        return sum(weight * other[word] for word, weight in one.items() if word in other)
