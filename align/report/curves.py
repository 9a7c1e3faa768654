"""Which metrics are drawn together, under which title and unit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from align.report.facts import Facts
from align.report.plot import NEUTRAL, STYLES, Flag, Line, Plot
from align.report.series import Series

ROLES = {"positive": 0, "negative": 1, "sample": 2}  # -> their style, in every plot
NATS = "nats a token"
_GROUPS = {  # what is before the / of a metric -> title, unit
    "logps": ("Log-probs by role", NATS),
    "log_ratio": ("Log-ratios to the reference", NATS),
    "kl": ("KL, estimated on samples", NATS),
    "retain": ("Retain term", NATS),
}
_SINGLE = {  # metric -> title, unit
    "loss": ("Loss", "of a step"),
    "grad_norm": ("Gradient norm", ""),
    "lr": ("Learning rate", ""),
    "tokens_per_second": ("Speed", "tokens/s"),
    "tokens": ("Tokens of a step", ""),
    "reference/forwards": ("Micro-batches through the reference", "a step"),
}
_FIRST = ("logps", "log_ratio", "kl", "retain", "loss", "grad_norm", "lr", "tokens_per_second")  # the others: below
_GUARD = "guard"
_HELD_OUT = {  # what is measured on held-out sets -> title
    "logps": "Held-out log-probs",
    "kl": "Held-out KL to the reference, exact",
    "entropy": "Entropy of the policy on held-out answers",
}


def title(metric: str) -> tuple[str, str]:
    """(title, unit) of the plot that a metric is drawn in."""
    group, _, name = metric.partition("/")
    if metric in _SINGLE:
        return _SINGLE[metric]
    return _GROUPS.get(group, (f"{group}: {name}" if name else metric, ""))


def main_plots(facts: Facts) -> list[Plot]:
    """The curves that are looked at first."""
    named = dict(facts.metrics.items())
    plots = []
    for first in _FIRST:
        names = [name for name in named if name == first or (name.partition("/")[0] == first and first in _GROUPS)]
        if names:
            plots.append(_of(facts, sorted(names, key=_style), named))
    return plots


def guard_plots(facts: Facts) -> list[Plot]:
    return [_of(facts, [name], named) for name, named in _each(facts) if name.partition("/")[0] == _GUARD]


def other_plots(facts: Facts) -> list[Plot]:
    """All other metrics, each by itself: what objectives tell."""
    drawn = {*_FIRST, _GUARD}
    each = _each(facts)
    return [
        _of(facts, [name], named) for name, named in each if name not in drawn and name.partition("/")[0] not in drawn
    ]


def held_out_plots(facts: Facts) -> list[Plot]:
    """Log-probs and KL of held-out sets before, during and after training."""
    plots = []
    for key, name in _HELD_OUT.items():
        points: dict[str, list] = {}
        roles: dict[str, str] = {}
        for step, measured in facts.held_out:
            at = facts.metrics.last_step if step is None else step
            for title_, one in measured.items():
                roles[title_] = one["role"]
                if one.get(key) is not None:
                    points.setdefault(title_, []).append((at, one[key], *one.get(f"{key}_interval", [one[key]] * 2)))
        if any(len(found) > 1 for found in points.values()):
            for number, some in enumerate(_parts(list(points)), 1):
                styles = zip(some, _styles(roles[one] for one in some), strict=True)
                lines = [Line(one, style, np.array(points[one], float)) for one, style in styles]
                named = name if len(points) <= STYLES else f"{name}, part {number}"
                plots.append(Plot(named, NATS, lines, facts.metrics.last_step, flags(facts), is_named=True))
    return plots


def _parts(names: list[str]) -> list[list[str]]:
    """As many in each as can be told apart."""
    return [names[start : start + STYLES] for start in range(0, len(names), STYLES)]


def flags(facts: Facts) -> list[Flag]:
    """The guard's events, numbered as in the table of them."""
    return [
        Flag(event["step"], number, f"{event.get('watch')}: {event.get('action')}")
        for number, event in enumerate(facts.events, 1)
        if isinstance(event.get("step"), int)
    ]


def shared_plots(runs: list[tuple[str, Facts]]) -> list[Plot]:
    """Each metric by itself, a line a run."""
    names = list(dict.fromkeys(name for _, facts in runs for name, _ in facts.metrics.items()))
    last = max(facts.metrics.last_step for _, facts in runs)
    plots = []
    for name in sorted(names, key=_rank):
        lines = [
            Line(label, style, series.points())
            for style, (label, facts) in enumerate(runs)
            if (series := facts.metrics.by_name.get(name)) is not None and series.count
        ]
        head, unit = title(name)
        group, _, role = name.partition("/")
        named = f"{head}: {role}" if group in _GROUPS and role in ROLES else head
        plots.append(Plot(named, unit, lines, last, is_named=True))
    return plots


def _of(facts: Facts, names: list[str], named: dict[str, Series] | Series) -> Plot:
    series = named if isinstance(named, dict) else {names[0]: named}
    lines = [Line(_label(name), _style(name), series[name].points()) for name in names]
    head, unit = title(names[0])
    is_named = any(line.label in ROLES for line in lines)
    return Plot(head, unit, lines, facts.metrics.last_step, flags(facts), is_named)


def _each(facts: Facts) -> Iterator[tuple[str, Series]]:
    return iter(sorted(facts.metrics.items(), key=lambda item: item[0]))


def _label(name: str) -> str:
    """A metric in a legend: the role alone where the title says the rest."""
    role = name.partition("/")[2]
    return role if role in ROLES else name


def _style(name: str) -> int:
    return ROLES.get(name.partition("/")[2], NEUTRAL)


def _rank(name: str) -> tuple[int, int, str]:
    group = name.partition("/")[0]
    place = _FIRST.index(name if name in _FIRST else group) if {name, group} & set(_FIRST) else len(_FIRST)
    return place + (group == _GUARD), _style(name), name


def _styles(roles: Iterable[str]) -> Iterator[int]:
    """A style for each set: the role's own for the first of a role, the others' in turn."""
    taken: set[int] = set()
    for role in roles:
        style = ROLES.get(role, 2)
        if style in taken:
            style = next(one for one in (*range(3, STYLES), *range(3)) if one not in taken)
        taken.add(style)
        yield style
