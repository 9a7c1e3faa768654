"""Which candidates become negatives: pure functions on arrays, and the recipe's options of each strategy.

Shapes: C candidates of a prompt, D size of a vector. Scores are finite; the higher, the more a candidate is like a
right answer. `positive` is the score of the prompt's positive, of several the lowest: what is above any of them may be
as good. Ties are broken at random. What is picked comes best first, as indices of candidates.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from align.schema import option

_ROUNDS = 20  # of k-means: a prompt has few candidates


class Candidates(NamedTuple):
    """What a strategy sees of a prompt."""

    scores: np.ndarray  # (C,) float64
    positive: float | None  # None: the prompt has no positive
    vectors: np.ndarray | None = None  # (C, D) unit vectors of the texts, for strategies that look at them


def shuffled(count: int, most: int, rng: np.random.Generator) -> np.ndarray:
    """(at most `most`,) some of `count`, all equally likely."""
    return rng.permutation(count)[:most]


def top_k(scores: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """(at most `most`,) the highest of (C,) scores."""
    order = rng.permutation(len(scores))
    return order[np.argsort(-scores[order], kind="stable")][:most]


def ambiguous(
    scores: np.ndarray, positive: float, most: int, rng: np.random.Generator, *, a: float, b: float
) -> np.ndarray:
    """(at most `most`,) drawn without replacement with p_i proportional to exp(-a (s_i - s_+ + b)^2).

    SimANS (arXiv 2210.11773), neither too hard nor too easy. The sign of b is that of the authors' code: for b above 0
    the band lies below the positive's score. Adding Gumbel noise to log p_i and taking the highest is that draw.
    """
    log_p = -a * (scores - positive + b) ** 2
    return top_k(log_p + rng.gumbel(size=len(scores)), most, rng)


def below_margin(scores: np.ndarray, positive: float, margin: float) -> np.ndarray:
    """(C,) bool: s_i < s_+ - margin. NV-Retriever's TopK-MarginPos (arXiv 2407.15831)."""
    return scores < positive - margin


def below_percentage(scores: np.ndarray, positive: float, share: float) -> np.ndarray:
    """(C,) bool: s_i < share * s_+. NV-Retriever's TopK-PercPos; it means something for s_+ above 0 only."""
    return scores < share * positive


def runner_up_ranks(count: int, first: float, last: float) -> tuple[int, int]:
    """[start, stop) of the ranks between two shares of `count`, from the best on; one at least, if there is one.

    `first` above 0 leaves out the best one at least: of few candidates it is the runner-up that is taken.
    """
    start = min(math.ceil(round(first * count, 9)), max(count - 1, 0))
    return start, min(max(math.ceil(round(last * count, 9)), start + 1), count)


def runner_up(scores: np.ndarray, most: int, rng: np.random.Generator, *, first: float, last: float) -> np.ndarray:
    """(at most `most`,) of the ranks between two shares, drawn at random where there are more.

    ConFit v2's runner-up mining: the top 3 % are too often right, what follows up to 4 % is hard.
    """
    start, stop = runner_up_ranks(len(scores), first, last)
    band = top_k(scores, len(scores), rng)[start:stop]
    return band[np.sort(shuffled(len(band), most, rng))]


def clusters(vectors: np.ndarray, scores: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    """(at most `most`,) the highest score of each of `most` clusters of the texts, the clusters of high scores first.

    Spherical k-means on unit vectors (C, D). The first centre is the candidate with the highest score, each further
    one the candidate farthest from all before (Gonzalez, 1985), so that nothing but ties is random.
    """
    order = top_k(scores, len(scores), rng)
    centres = vectors[_farthest_first(vectors, int(order[0]), min(most, len(scores)))]
    for _ in range(_ROUNDS):
        of = (vectors @ centres.T).argmax(1)  # (C,) whose cluster
        sums = np.stack([vectors[of == one].sum(0) for one in range(len(centres))])
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        moved = np.where(norms > 0, sums / np.where(norms > 0, norms, 1.0), centres)
        if np.allclose(moved, centres):
            break
        centres = moved
    of = (vectors @ centres.T).argmax(1)
    return order[np.sort(np.unique(of[order], return_index=True)[1])]


def _farthest_first(vectors: np.ndarray, first: int, count: int) -> list[int]:
    found, nearest = [first], vectors @ vectors[first]
    while len(found) < count:
        found.append(int(nearest.argmin()))
        nearest = np.maximum(nearest, vectors @ vectors[found[-1]])
    return found


def ches(positive: np.ndarray, negative: np.ndarray) -> float:
    """<h_w, h_l> - |h_w|^2 of the mean last hidden states (H,) over the tokens of a positive and a negative.

    Length-normalised CHES (arXiv 2410.08847): h is read at the positions that predict the response's tokens. The
    higher, the more a push on the negative takes the positive along.
    """
    w, n = positive.astype(np.float64), negative.astype(np.float64)
    return float(w @ n - w @ w)


def lowest_share(values: np.ndarray, share: float) -> float:
    """The highest of the lowest `share` of some values (one value at least)."""
    count = max(1, math.floor(round(share * len(values), 9)))
    return float(np.partition(values, count - 1)[count - 1])


@dataclass(frozen=True, kw_only=True)
class Random:
    """Any of the candidates."""

    needs: ClassVar[tuple[str, ...]] = ()

    def pick(self, row: Candidates, most: int, rng: np.random.Generator) -> np.ndarray:
        return shuffled(len(row.scores), most, rng)


@dataclass(frozen=True, kw_only=True)
class TopK:
    """The candidates with the highest scores, and with them those that are right after all."""

    needs: ClassVar[tuple[str, ...]] = ()

    def pick(self, row: Candidates, most: int, rng: np.random.Generator) -> np.ndarray:
        return top_k(row.scores, most, rng)


@dataclass(frozen=True, kw_only=True)
class Ambiguous:
    """SimANS: drawn around a score somewhat below the positive's. Not carried over: its uniform draw at score 0."""

    a: float = option(1.0, gt=0, doc="How narrow the band is: the weight of a squared distance, in the score's units.")
    b: float = option(0.0, doc="How far below the positive's score its middle lies, in the score's units.")
    needs: ClassVar[tuple[str, ...]] = ("positive",)

    def pick(self, row: Candidates, most: int, rng: np.random.Generator) -> np.ndarray:
        return ambiguous(row.scores, row.positive, most, rng, a=self.a, b=self.b)


@dataclass(frozen=True, kw_only=True)
class Margin:
    """NV-Retriever: the highest scores that lie below the positive's by a margin."""

    margin: float = option(0.05, ge=0, doc="Least distance from the positive's score, in the score's units.")
    needs: ClassVar[tuple[str, ...]] = ("positive",)

    def pick(self, row: Candidates, most: int, rng: np.random.Generator) -> np.ndarray:
        below = np.flatnonzero(below_margin(row.scores, row.positive, self.margin))
        return below[top_k(row.scores[below], most, rng)]


@dataclass(frozen=True, kw_only=True)
class Percentage:
    """NV-Retriever: the highest scores below a share of the positive's. Left out: drawing among the best ten."""

    share: float = option(0.95, gt=0, le=2, doc="Of the positive's score; candidates must lie below.")
    needs: ClassVar[tuple[str, ...]] = ("positive", "above 0")

    def pick(self, row: Candidates, most: int, rng: np.random.Generator) -> np.ndarray:
        below = np.flatnonzero(below_percentage(row.scores, row.positive, self.share))
        return below[top_k(row.scores[below], most, rng)]


@dataclass(frozen=True, kw_only=True)
class RunnerUp:
    """ConFit v2: the ranks behind the best ones."""

    first: float = option(0.03, ge=0, lt=1, doc="Share of the candidates, the best ones, that is left out.")
    last: float = option(0.04, gt=0, le=1, doc="Share of the candidates up to which they are taken.")
    needs: ClassVar[tuple[str, ...]] = ()

    def pick(self, row: Candidates, most: int, rng: np.random.Generator) -> np.ndarray:
        return runner_up(row.scores, most, rng, first=self.first, last=self.last)


@dataclass(frozen=True, kw_only=True)
class Clusters:
    """The highest score of each cluster of texts: negatives that differ from each other."""

    needs: ClassVar[tuple[str, ...]] = ("vectors",)

    def pick(self, row: Candidates, most: int, rng: np.random.Generator) -> np.ndarray:
        return clusters(row.vectors, row.scores, most, rng)


STRATEGIES = {
    "random": Random, "top_k": TopK, "ambiguous": Ambiguous, "margin": Margin, "percentage": Percentage,
    "runner_up": RunnerUp, "clusters": Clusters,
}  # fmt: skip
Strategy = Random | TopK | Ambiguous | Margin | Percentage | RunnerUp | Clusters


def too_close(strategy: Strategy, row: Candidates) -> np.ndarray:
    """(C,) bool: what a strategy never picks because its score is too near the positive's, or above."""
    if isinstance(strategy, Margin):
        return ~below_margin(row.scores, row.positive, strategy.margin)
    if isinstance(strategy, Percentage):
        return ~below_percentage(row.scores, row.positive, strategy.share)
    return np.zeros(len(row.scores), bool)


def build(options: dict) -> Strategy:
    """The strategy that a recipe's section names."""
    return STRATEGIES[options["name"]](**{key: value for key, value in options.items() if key != "name"})


def resolved(options: dict) -> dict:
    """The section with every value."""
    return {"name": options["name"], **dataclasses.asdict(build(options))}
