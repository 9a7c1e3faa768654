"""All objectives in one table: what each needs, what its loss is divided by, what it does."""

from __future__ import annotations

from align import objectives


def table() -> str:
    """A Markdown table, one row an objective, in the order of their names. The README holds the same."""
    lines = ["| objective | needs | normalised by | what it does |", "|---|---|---|---|"]
    for name in objectives.available():
        cls = objectives.load(name)
        what = " ".join(cls.__doc__.split()).rstrip(".")  # the class's own sentence
        lines.append(f"| `{name}` | {', '.join(cls.needs)} | {cls.normalize_by} | {what} |")
    return "\n".join(lines)
