"""What mining did, in figures: the scores of positives, chosen and refused candidates; as JSON and for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from align.negatives.scorers import CHES, VERDICT, Told

POSITIVE, CHOSEN, REFUSED = "positives", "chosen", "refused"
GROUPS = (POSITIVE, CHOSEN, REFUSED)
_KEPT = 20_000  # values of a distribution that are kept
_BINS = 24
_SHARES = (0.05, 0.25, 0.5, 0.75, 0.95)
_BARS = " ▁▂▃▄▅▆▇█"


class Reservoir:
    """Values in bounded memory: how many there were, their mean, and a random sample of at most 20,000 of them."""

    def __init__(self, seed: int):
        self._rng, self._values = np.random.default_rng(seed), np.empty(_KEPT)
        self.count, self._sum = 0, 0.0

    def add(self, values: np.ndarray) -> None:
        """More values; those that are not finite are left out."""
        values = values[np.isfinite(values)]
        counts = self.count + np.arange(len(values))  # how many there were before each
        places = np.where(counts < _KEPT, counts, self._rng.integers(counts + 1))
        for place, value in zip(places[places < _KEPT], values[places < _KEPT], strict=True):
            self._values[place] = value
        self.count += len(values)
        self._sum += float(values.sum())

    @property
    def values(self) -> np.ndarray:
        return self._values[: self.count]

    @property
    def mean(self) -> float:
        return self._sum / self.count


class Report:
    """Collects scores prompt by prompt."""

    def __init__(self, seed: int):
        self.seed, self.scores = seed, {}  # score -> group -> Reservoir
        self.refused: Counter = Counter()  # reason -> candidates
        self.candidates = self.chosen = self.prompts = self.served = 0
        self.above = 0  # chosen ones whose score is that of the prompt's lowest positive, or above
        self.compared = self.even = 0  # prompts with several to choose from; those where all have the same score

    def add(
        self, scores: Mapping[str, Told], places: Mapping[str, Sequence[int]], positive: float | None,
        ranked: np.ndarray, first: str,
    ) -> None:  # fmt: skip
        """The scores of a prompt, and which of its candidates are in which group.

        `ranked`: the scores, by the one called `first`, of those that the strategy could choose from.
        """
        for name, told in scores.items():
            if name == VERDICT:
                continue
            own = self.scores.setdefault(name, {group: Reservoir(self.seed) for group in GROUPS})
            own[POSITIVE].add(told.positives)
            for group in (CHOSEN, REFUSED):
                own[group].add(told.candidates[list(places[group])])
        picked = list(places[CHOSEN])
        self.prompts, self.served = self.prompts + 1, self.served + bool(picked)
        self.candidates += len(picked) + len(places[REFUSED])
        self.chosen += len(picked)
        self.compared += len(ranked) > 1
        self.even += len(ranked) > 1 and ranked.min() == ranked.max()
        if positive is not None:
            self.above += int((scores[first].candidates[picked] >= positive).sum())

    def as_dict(self) -> dict:
        return {
            "prompts_with_candidates": self.prompts, "prompts_with_negatives": self.served,
            "candidates": self.candidates, "chosen": self.chosen, "chosen_not_below_the_positive": self.above,
            "prompts_whose_candidates_are_equal": int(self.even),
            "refused": dict(self.refused.most_common()),
            "scores": {name: _distributions(groups) for name, groups in self.scores.items()},
        }  # fmt: skip


def _distributions(groups: Mapping[str, Reservoir]) -> dict:
    """group -> count, mean, quantiles and the shares of its values in bins that all groups have in common."""
    everything = np.concatenate([own.values for own in groups.values()])
    if not len(everything):
        return {}
    low, high = np.quantile(everything, (0.005, 0.995))  # a few far ones must not press all others into one bin
    edges = np.linspace(low, high if high > low else low + 1.0, _BINS + 1)
    found = {"bins": [float(edge) for edge in edges]}
    for group, own in groups.items():
        if own.count:
            counts, _ = np.histogram(np.clip(own.values, edges[0], edges[-1]), edges)
            quantiles = np.quantile(own.values, _SHARES)
            found[group] = {
                "count": own.count, "mean": own.mean,
                "quantiles": {f"{share:g}": float(one) for share, one in zip(_SHARES, quantiles, strict=True)},
                "shares": [float(one) for one in counts / counts.sum()],
            }  # fmt: skip
    return found


def table(report: dict) -> str:
    """The report for a terminal."""
    lines = [
        f"{report['prompts_with_negatives']:,} of {report['prompts_with_candidates']:,} prompts have negatives: "
        f"{report['chosen']:,} chosen of {report['candidates']:,} candidates, "
        f"{report['chosen_not_below_the_positive']:,} of them not below the positive"
    ]
    if report["prompts_whose_candidates_are_equal"]:
        lines.append(f"  {report['prompts_whose_candidates_are_equal']:,} prompts have equal candidates: any is chosen")
    lines += [f"  {reason}: {count:,}" for reason, count in report["refused"].items()]
    for name, found in report["scores"].items():
        if not found:
            continue
        low, high = found["bins"][0], found["bins"][-1]
        what = "CHES, the higher the more it pulls the positive down" if name == CHES else name
        lines += ["", f"{what}, from {low:.3g} to {high:.3g}"]
        heads = "".join(f"{float(share):.0%}".rjust(9) for share in _SHARES)
        lines.append(f"  {'':<10}{'count':>9}{'mean':>9}{heads}")
        for group in GROUPS:
            if group in found:
                own = found[group]
                cells = "".join(f"{value:9.3g}" for value in (own["mean"], *own["quantiles"].values()))
                lines.append(f"  {group:<10}{own['count']:>9,}{cells}  {_bars(own['shares'])}")
    return "\n".join(lines)


def _bars(shares: Sequence[float]) -> str:
    """A histogram on one line; a bin that is not empty shows."""
    most = max(shares)
    return "".join(_BARS[int(np.ceil(share / most * (len(_BARS) - 1)))] for share in shares)
