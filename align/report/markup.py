"""HTML made of text that cannot be trusted: everything that is not markup of ours goes through `text` or `attribute`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from html import escape

from align.errors import printable

LONGEST = 4000  # characters of a text from data that are shown


def text(value: object) -> str:
    """Text for an element, on one line: control characters (terminal escapes, bidirectional marks) as escapes."""
    return escape(printable(_cut(str(value))))


def passage(value: object) -> str:
    """The same for text of several lines, shown where line breaks count (class `text`)."""
    return "\n".join(escape(printable(line)) for line in _cut(str(value)).split("\n"))


def attribute(value: object) -> str:
    """Text between the double quotes of an attribute."""
    return escape(printable(_cut(str(value))), quote=True)


def number(value: object, digits: int = 4, sign: bool = False) -> str:
    """A number as it stands in a file, shown with so many significant digits; `-` for none, other values as text."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    return f'<data value="{value!r}">{shown(value, digits, sign)}</data>'


def shown(value: float, digits: int = 4, sign: bool = False) -> str:
    """A number for a reader: so many significant digits, thousands divided; whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    plus = "+" if sign else ""
    if isinstance(value, int) or (value == int(value) and 1000 <= abs(value) < 1e15):
        return f"{int(value):{plus},d}"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:{plus}.{digits - 1}e}"
    decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    return f"{value:{plus},.{max(min(decimals, digits), 0)}f}"


def interval(ends: Sequence[float | None]) -> str:
    low, high = (number(end) if end is not None else "?" for end in ends)
    return f'<span class="interval">({low} to {high})</span>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, names: int = 1, caption: str = "") -> str:
    """A table of cells that are markup already; the first `names` columns name the row. Wide ones scroll by themselves.

    Columns are repeated in no row: a cell that is "" stays empty.
    """
    top = "".join(f'<th scope="col"{_side(index, names)}>{cell}</th>' for index, cell in enumerate(head))
    body = ""
    for row in rows:
        cells = [
            f'<th scope="row">{cell}</th>' if index == 0 else f"<td{_side(index, names)}>{cell}</td>"
            for index, cell in enumerate(row)
        ]
        body += f"<tr>{''.join(cells)}</tr>\n"
    title = f"<caption>{caption}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="table"><table>{title}'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of names (text) with what they are (markup)."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def section(name: str, title: str, *parts: str) -> str:
    """A part of the page that the contents link to."""
    body = "\n".join(part for part in parts if part)
    return f'<section id="{attribute(name)}"><h2>{text(title)}</h2>\n{body}\n</section>' if body else ""


def script_json(value: object) -> str:
    """JSON that may stand in a script element whatever the texts in it say."""
    whole = json.dumps(value, separators=(",", ":"))
    return whole.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _side(index: int, names: int) -> str:
    return "" if index < names else ' class="n"'


def _cut(value: str) -> str:
    if len(value) <= LONGEST:
        return value
    return f"{value[:LONGEST]} … ({len(value) - LONGEST:,} more characters in the file)"
