"""Texts that are nearly the same as one of a smaller set: most of their runs of three words are shared.

Exact, by prefix filtering (Chaudhuri et al., 2006; Bayardo et al., 2007): for two sets to be similar to t, one of the
rarest (1 - t) of each one's members must be among those of the other. Only these are looked up.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict

RUN = 3  # words of a run
MANY, MANY_SHARE = 10, 0.05  # texts, and of all texts, that share a run from which on it does not count
_WORD = re.compile(r"\w+")


def runs(text: str) -> frozenset[int]:
    """The runs of three words of a text, as 64-bit hashes of this process; of a shorter text all of it is one."""
    words = _WORD.findall(text.lower())
    if len(words) < RUN:
        return frozenset({hash(tuple(words))}) if words else frozenset()
    return frozenset(map(hash, zip(*(words[start:] for start in range(RUN)), strict=False)))


def similarity(one: frozenset[int], other: frozenset[int]) -> float:
    """Jaccard similarity: shared runs over all runs."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared) if shared else 0.0


class NearDuplicates:
    """Finds, for any text, the first of the added ones that it is similar to, to at least `threshold`.

    Runs that many different ones of the added texts have (an instruction in front of each, say) do not count.
    """

    def __init__(self, threshold: float = 0.8):
        self.threshold = threshold
        self.sets: list[tuple[str, frozenset[int]]] = []  # (place, runs)
        self._common: frozenset[int] = frozenset()
        self._often: Counter = Counter()
        self._index: dict[int, list[int]] | None = None  # a rare run -> which sets have it

    def add(self, place: str, text: str) -> None:
        found = runs(text)
        if found:
            self.sets.append((place, found))
            self._index = None

    def match(self, text: str) -> str | None:
        """The place of the first similar text, or None."""
        if not self.sets:
            return None
        if self._index is None:
            self._common = self._in_many()
            self.sets = [(place, found - self._common) for place, found in self.sets]
            self._often = Counter(run for _, found in self.sets for run in found)
            self._index = defaultdict(list)
            for number, (_, found) in enumerate(self.sets):
                for run in self._rarest(found):
                    self._index[run].append(number)
        found = runs(text) - self._common
        candidates = sorted({n for run in self._rarest(found) for n in self._index.get(run, ())})
        near = (number for number in candidates if similarity(found, self.sets[number][1]) >= self.threshold)
        return next((self.sets[number][0] for number in near), None)

    def _in_many(self) -> frozenset[int]:
        different = {found for _, found in self.sets}
        often = Counter(run for found in different for run in found)
        return frozenset(run for run, count in often.items() if count >= max(MANY, MANY_SHARE * len(different)))

    def _rarest(self, found: frozenset[int]) -> list[int]:
        """Those of the runs of which a similar text must share one: in both texts it is among these."""
        # sharing ceil(t n) of n members leaves n - ceil(t n) that need not be shared: one more must be
        kept = len(found) - math.ceil(self.threshold * len(found)) + 1
        return sorted(found, key=lambda run: (self._often[run], run))[:kept]
