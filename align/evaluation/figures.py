"""What every measure comes to: a figure of each model with its interval, and its difference to the base's.

A figure is {"value", "interval"} and, of all models but the base, {"change", "change_interval"}; of shares also {"won",
"lost", "p"}: the rows that only this model, or only the base, has, and McNemar's exact test of them. What is undefined
(a precision where nothing was said) is None. Intervals are of 95 %: bootstrapped over rows, but for shares, which may
be 0 or 1 (`align.evaluation.intervals`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from align.errors import printable, shorten
from align.evaluation.intervals import mcnemar, of_change, of_share, percentiles, resampled
from align.evaluation.subject import BASE

Groups = Sequence[np.ndarray]  # of each group of rows (N, C) columns; groups are resampled apart
Statistic = Callable[..., np.ndarray]  # the means (..., C) of the columns of each group -> (...)


def figures(statistic: Statistic, groups: Mapping[str, Groups]) -> dict[str, dict]:
    """{model: figure} of a statistic of the means of columns; all models have seen the same rows in the same order."""
    base = groups.get(BASE)
    found = {}
    for name, own in groups.items():
        value, draws = _measured(statistic, own)
        found[name] = {"value": _number(value), "interval": _interval(draws)}
        if base is not None and name != BASE:
            base_value, base_draws = _measured(statistic, base)
            found[name] |= {"change": _number(value - base_value), "change_interval": _interval(draws - base_draws)}
    return found


def means(values: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """{model: figure} of the mean of a value (N,) of each row."""
    return figures(lambda columns: columns[..., 0], {name: [own[:, None]] for name, own in values.items()})


def ratios(tops: Mapping[str, np.ndarray], bottom: np.ndarray) -> dict[str, dict]:
    """{model: figure} of the sum over rows of one value (N,), divided by the sum of another (a mean over tokens)."""
    columns = {name: [np.stack([top, bottom], -1)] for name, top in tops.items()}
    return figures(lambda columns: columns[..., 0] / columns[..., 1], columns)


def shares(truths: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """{model: figure} of the share of rows for which something (N,) bool is true."""
    base = truths.get(BASE)
    return {name: share(own, None if name == BASE else base) for name, own in truths.items()}


def portions(values: Mapping[str, np.ndarray]) -> dict[str, dict]:
    """{model: figure} of the mean of a portion (N,), 0 to 1, of each row: a share of rows, where all are 0 or 1."""
    if all(np.isin(own, (0, 1)).all() for own in values.values()):
        return shares({name: own == 1 for name, own in values.items()})
    return means(values)


def share(own: np.ndarray, base: np.ndarray | None) -> dict:
    """The figure of a share of rows (N,) bool, and of how it differs from the base's, if that is given."""
    count, total = int(own.sum()), len(own)
    found = {"value": count / total, "interval": list(of_share(count, total))}
    if base is not None:
        won, lost = int((own & ~base).sum()), int((~own & base).sum())
        found |= {"change": (won - lost) / total, "change_interval": list(of_change(won, lost, total))}
        found |= {"won": won, "lost": lost, "p": mcnemar(won, lost)}
    return found


def table(metrics: Mapping[str, Mapping[str, dict]]) -> str:
    """Metrics for a terminal, a line for each model but the base; names may come from data, so they are escaped."""
    lines = []
    for metric, models in metrics.items():
        title, base = shorten(metric, 42), _text(models.get(BASE), "value", "interval")
        others = {name: found for name, found in models.items() if name != BASE} or {"": {}}
        for name, found in others.items():
            value, change = _text(found, "value", "interval"), _text(found, "change", "change_interval", "+")
            p = f"{found['p']:.2g}" if "p" in found else ""
            cells = zip((title, base, printable(name), value, change, p), _WIDTHS, strict=True)
            lines.append("  " + "".join(f"{cell + ' ':<{width}}" for cell, width in cells).rstrip())
            title = base = ""
    return "\n".join(lines)


_WIDTHS = (44, 28, 24, 28, 29, 1)
_TITLES = ("95 % intervals", "base", "model", "value", "change against the base", "p")
HEADER = "  " + "".join(f"{title:<{width}}" for title, width in zip(_TITLES, _WIDTHS, strict=True))


def _measured(statistic: Statistic, groups: Groups) -> tuple[float, np.ndarray]:
    """(the value, (R,) that of resamples)."""
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(statistic(*(columns.mean(0) for columns in groups)))
        return value, statistic(*(resampled(columns, seed=seed) for seed, columns in enumerate(groups)))


def _interval(draws: np.ndarray) -> list[float | None]:
    return [_number(end) for end in percentiles(draws)]


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _text(figure: dict | None, key: str, interval: str, sign: str = "") -> str:
    """A value of a figure with its interval; empty where the figure has none."""
    if not figure or key not in figure:
        return ""
    if figure[key] is None:
        return "undefined"
    low, high = ("?" if end is None else f"{end:{sign}.3f}" for end in figure[interval])
    return f"{figure[key]:{sign}.3f} ({low} to {high})"
