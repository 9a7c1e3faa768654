"""Measurements as tables: held-out sets before and after, and whatever `align evaluate` has found."""

from __future__ import annotations

from collections.abc import Iterator

from align.report import markup
from align.report.facts import Facts
from align.report.markup import number, passage, text
from align.report.summary import held_out

HELD_OUT_NOTE = (
    "Means over response tokens, in nats a token; KL is exact, over the whole vocabulary. In parentheses, and as bands "
    "of plots: 95 % intervals over prompts."
)
_INTERVAL = "interval"
FOLDED = 24  # most rows of a table that is not folded up


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
    """What a measure of evaluations.json has found, whatever its shape: facts, and a table for each part of it.

    A dictionary with numbers is a row of its part, named by the keys that lead to it; `X_interval` stands with its
    `X`, and `interval` with the first number. A list of dictionaries is a table of their texts.
    """
    if not isinstance(found, dict):
        return markup.facts([("value", _plain(found))])
    found = {name: value for name, value in found.items() if name not in ("measure", "data")}  # its heading says them
    parts = [_own(found)]
    for name, value in sorted(found.items(), key=lambda item: item[0] != "metrics"):
        if _is_part(value):
            title = "" if name == "metrics" else f'<p class="note">{_spelt(name)}</p>'
            parts.append(title + (_part(value) if isinstance(value, dict) else _texts(value)))
    return "\n".join(filter(None, parts))


def spelt_measure(name: str) -> str:
    """The heading of a measure: its name, and what it was measured on."""
    measured, colon, data = name.partition(": ")
    return text(f"{measured.replace('_', ' ')}{colon}{data}")


def measure_of_runs(each: dict[str, dict]) -> str:
    """The same measure of several runs, each under its label: their metrics side by side."""
    used = {label: one["rows"]["rows_used"] for label, one in each.items() if "rows" in one}
    names = dict.fromkeys(name for one in each.values() for name in one.get("metrics", {}))
    metrics = {
        name: {label: one["metrics"][name] for label, one in each.items() if name in one.get("metrics", {})}
        for name in names
    }
    others = {label: one for label, one in each.items() if "metrics" not in one}
    return measure(({"metrics": metrics} if metrics else {}) | ({"rows_used": used} if used else {}) | others)


def _is_part(value: object) -> bool:
    is_list = isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)
    return is_list or (isinstance(value, dict) and bool(value))


def _own(found: dict) -> str:
    """What a dictionary says itself, beside the parts in it."""
    cells = _cells({name: value for name, value in found.items() if not _is_part(value)})
    return markup.facts((name.replace("_", " "), cell) for name, cell in cells.items()) if cells else ""


def _part(found: dict) -> str:
    rows = list(_rows(found, ()))
    if not rows:
        return _own(found)
    depth = max(len(path) for path, _ in rows)
    columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
    body = [
        [*(text(key) for key in path), *[""] * (depth - len(path)), *(cells.get(name, "") for name in columns)]
        for path, cells in rows
    ]
    table = markup.table([""] * depth + list(map(_spelt, columns)), body)
    if len(body) > FOLDED:
        table = f"<details><summary>{len(body)} rows</summary>{table}</details>"
    return _own(found) + table


def _texts(found: list[dict]) -> str:
    """Answers, say: a row for each dictionary, a column for each of their keys."""
    columns = list(dict.fromkeys(name for one in found for name in one))
    rows = [[f'<p class="text">{passage(one.get(name, ""))}</p>' for name in columns] for one in found]
    return markup.table(list(map(_spelt, columns)), rows)


def _spelt(name: str) -> str:
    """The name of a key as a heading, which may be broken over lines."""
    return text(name.replace("_", " "))


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


def _plain(value: object) -> str:
    if _is_interval(value):
        return markup.interval(value)
    if isinstance(value, list):
        return text(", ".join(map(str, value)) or "none")
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
