"""Measurements as tables: held-out sets before and after, and whatever `align evaluate` has found."""

from __future__ import annotations

from collections.abc import Iterator

from align.report import markup
from align.report.facts import Facts
from align.report.markup import number, text
from align.report.summary import held_out

_INTERVAL = "interval"


def before_after(facts: Facts) -> str:
    """Held-out sets, one a row: log-probs before and now, their change, KL, entropy, top-1 share."""
    rows, late = [], set()
    for name, found in held_out(facts).items():
        then, now = found["before"], found["latest"] or {}
        if found["latest"]:
            late.add("after training" if found["step"] is None else f"after step {found['step']}")
        change = number(found["change"], 4, sign=True) if found["change"] is not None else "-"
        rows.append([
            text(name), _with_interval(then, "logps"), _with_interval(now, "logps"),
            change + _interval_of(found, "change_interval"), number(now.get("kl")),
            f"{number(then.get('entropy'))} → {number(now.get('entropy'))}",
            f"{number(then.get('top1'))} → {number(now.get('top1'))}",
            number(then.get("responses")), number(then.get("tokens")),
        ])  # fmt: skip
    if not rows:
        return ""
    head = [
        "held-out set", "log-prob before", text(f"log-prob {', '.join(sorted(late)) or 'after'}"), "change",
        "KL to reference", "entropy", "top-1 probability", "responses", "tokens",
    ]  # fmt: skip
    caption = "Means over response tokens, in nats a token; KL is exact, over the whole vocabulary."
    return markup.table(head, rows, caption=caption)


def measure(found: object) -> str:
    """What a measure of evaluations.json has found, whatever its shape: figures in rows, the rest as facts.

    A dictionary with numbers is a row, named by the keys that lead to it; `X_interval` stands with its `X`, and
    `interval` with the first number.
    """
    plain = [(name, _plain(value)) for name, value in _scalars(found)]
    parts = [markup.facts(plain)] if plain else []
    rows = list(_rows(found, ())) if isinstance(found, dict) else []
    if rows:
        depth = max(len(path) for path, _ in rows)
        columns = list(dict.fromkeys(name for _, cells in rows for name in cells))
        body = [
            [*(text(key) for key in path), *[""] * (depth - len(path)), *(cells.get(name, "") for name in columns)]
            for path, cells in rows
        ]
        parts.append(markup.table([""] * depth + [text(name) for name in columns], body, names=depth))
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


def _with_interval(values: dict, name: str) -> str:
    return number(values.get(name)) + _interval_of(values, f"{name}_{_INTERVAL}")


def _interval_of(values: dict, name: str) -> str:
    ends = values.get(name)
    return f" {markup.interval(ends)}" if _is_interval(ends) else ""


def _is_interval(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(
        end is None or (isinstance(end, int | float) and not isinstance(end, bool)) for end in value
    )  # fmt: skip
