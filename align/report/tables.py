"""Measurements as tables: held-out sets before and after, and whatever `align evaluate` has found."""

from __future__ import annotations

from collections.abc import Iterator

from align.report import markup
from align.report.facts import Facts
from align.report.markup import number, text
from align.report.summary import held_out

HELD_OUT_NOTE = (
    "Means over response tokens, in nats a token; KL is exact, over the whole vocabulary. In parentheses, and as bands "
    "of plots: 95 % intervals over prompts."
)
_INTERVAL = "interval"


def before_after(facts: Facts) -> str:
    """Held-out sets, one a row: log-probs before and now, their change, KL, entropy, top-1 share."""
    return _held_out_table("held-out set", held_out(facts), HELD_OUT_NOTE)


def held_out_of_runs(name: str, runs: dict[str, Facts]) -> str:
    """The same of one set, a row for each run."""
    return _held_out_table("run", {label: held_out(facts)[name] for label, facts in runs.items()}, "")


def _held_out_table(first: str, found: dict[str, dict], caption: str) -> str:
    rows, late = [], set()
    for name, one in found.items():
        then, now = one["before"], one["latest"] or {}
        if now:
            late.add("after training" if one["step"] is None else f"after step {one['step']}")
        size = f"{number(then.get('responses'))} responses, {number(then.get('tokens'))} tokens"
        rows.append([
            f"{text(name)}<small>{size}</small>", _nats(then, "logps"), _nats(now, "logps"),
            _nats(one, "change", sign=True), _nats(now, "kl"),
            f"{_nats(then, 'entropy')} → {_nats(now, 'entropy')}", f"{_nats(then, 'top1')} → {_nats(now, 'top1')}",
        ])  # fmt: skip
    if not rows:
        return ""
    head = [
        first, "log-prob before", text(f"log-prob {', '.join(sorted(late)) or 'after'}"), "change", "KL to reference",
        "entropy", "top-1 probability",
    ]  # fmt: skip
    return markup.table(head, rows, caption=caption)


def measure(found: object) -> str:
    """What a measure of evaluations.json has found, whatever its shape: figures in rows, the rest as facts.

    A dictionary with numbers is a row, named by the keys that lead to it; `X_interval` stands with its `X`, and
    `interval` with the first number.
    """
    plain = [(name, _plain(value)) for name, value in _scalars(found)]
    parts = [markup.facts(plain)] if plain else []
    rows = list(_rows(found, ())) if isinstance(found, dict) else []
    if rows and len({path[0] for path, _ in rows}) == 1 and all(len(path) > 1 for path, _ in rows):
        rows = [(path[1:], cells) for path, cells in rows]  # a level that tells nothing apart
    if rows:
        depth = max(len(path) for path, _ in rows)
        columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
        body = [
            [*(text(key) for key in path), *[""] * (depth - len(path)), *(cells.get(name, "") for name in columns)]
            for path, cells in rows
        ]
        parts.append(markup.table([""] * depth + [text(name) for name in columns], body))
    return "\n".join(parts)


def _rows(found: dict, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, str]]]:
    """(the keys that lead there, {column: cell}) of each dictionary with values of its own, below the first one."""
    for name, value in found.items():
        if isinstance(value, dict):
            here = (*path, str(name))
            cells = _cells(value)
            if cells:
                yield here, cells
            yield from _rows(value, here)


def _cells(values: dict) -> dict[str, str]:
    cells: dict[str, str] = {}
    numbers = [name for name, value in values.items() if value is None or isinstance(value, int | float)]
    for name, value in values.items():
        if isinstance(value, dict):
            continue
        base = numbers[0] if name == _INTERVAL and numbers else name.removesuffix(f"_{_INTERVAL}")
        if _is_interval(value) and base != name and base in values:
            continue  # it stands in the cell of its number
        own = f"{name}_{_INTERVAL}" if f"{name}_{_INTERVAL}" in values or name not in numbers[:1] else _INTERVAL
        cells[name] = _plain(value) + _interval_of(values, own)
    return cells


def _scalars(found: object) -> Iterator[tuple[str, object]]:
    """What is said of a whole measure."""
    if not isinstance(found, dict):
        yield "value", found
        return
    for name, value in found.items():
        if not isinstance(value, dict):
            yield name, value


def _plain(value: object) -> str:
    if _is_interval(value):
        return markup.interval(value)
    return number(value)


def _nats(values: dict, name: str, *, sign: bool = False) -> str:
    ends = values.get(f"{name}_{_INTERVAL}")
    told = f" {markup.interval(ends, 3)}" if _is_interval(ends) else ""
    return number(values.get(name), sign=sign, decimals=3) + told


def _interval_of(values: dict, name: str) -> str:
    ends = values.get(name)
    return f" {markup.interval(ends)}" if _is_interval(ends) else ""


def _is_interval(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(
        end is None or (isinstance(end, int | float) and not isinstance(end, bool)) for end in value
    )  # fmt: skip
