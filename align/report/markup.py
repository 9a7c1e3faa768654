"""HTML of text that cannot be trusted: what is not markup of ours goes through `text`, `passage` or `attribute`."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from html import escape

from align.errors import printable

LONGEST = 4000  # characters of a text from data that are shown
_SPACES = re.compile(r"([\n\t])")


def text(value: object) -> str:
    """Text for an element, on one line: control characters (terminal escapes, bidirectional marks) as escapes."""
    return escape(printable(_cut(str(value))))


def passage(value: object) -> str:
    """The same for text whose line breaks and tabs count (class `text`)."""
    return "".join(
        part if part in ("\n", "\t") else escape(printable(part)) for part in _SPACES.split(_cut(str(value)))
    )


def attribute(value: object) -> str:
    """Text between the double quotes of an attribute."""
    return escape(printable(_cut(str(value))), quote=True)


def number(value: object, digits: int = 4, *, sign: bool = False, decimals: int | None = None) -> str:
    """A number as it stands in a file, shown with so many significant digits, or decimals; what is no number as text.

    The element bears the exact value; `-` stands for None.
    """
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    plus = "+" if sign else ""
    told = shown(value, digits, plus) if decimals is None else f"{value:{plus}.{decimals}f}"
    return f'<data value="{value!r}">{told}</data>'


def shown(value: float, digits: int = 4, plus: str = "") -> str:
    """A number for a reader: so many significant digits, thousands divided; whole numbers in full."""
    if not math.isfinite(value):
        return str(value)
    if isinstance(value, int) or (value == int(value) and 1000 <= abs(value) < 1e15):
        return f"{int(value):{plus},d}"
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:{plus}.{digits - 1}e}"
    decimals = digits - 1 - (math.floor(math.log10(abs(value))) if value else 0)
    decimals = min(decimals, digits) if abs(value) >= 0.01 else decimals
    return f"{value:{plus},.{max(decimals, 0)}f}"


def interval(ends: Sequence[float | None], decimals: int | None = None) -> str:
    low, high = (number(end, decimals=decimals) if end is not None else "?" for end in ends)
    return f'<span class="interval">({low} to {high})</span>'


def memory(value: int | None) -> str:
    """Bytes, shown in GiB."""
    return "-" if value is None else f'<data value="{value}">{value / 2**30:.2f} GiB</data>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> str:
    """A table of cells that are markup already; columns that hold numbers are set right. A wide one scrolls."""
    is_number = [
        all(row[index].startswith(("<data", "-")) or not row[index] for row in rows) for index in range(len(head))
    ]
    kinds = [' class="n"' if one else "" for one in is_number]
    top = "".join(f'<th scope="col"{kind}>{cell}</th>' for kind, cell in zip(kinds, head, strict=True))
    body = ""
    for row in rows:
        others = "".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds[1:], row[1:], strict=True))
        body += f'<tr><th scope="row"{kinds[0]}>{row[0]}</th>{others}</tr>\n'
    above = f'<p class="note">{text(caption)}</p>' if caption else ""
    return (
        f'{above}<div class="wide" tabindex="0" role="region" aria-label="table"><table>'
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


def _cut(value: str) -> str:
    if len(value) <= LONGEST:
        return value
    return f"{value[:LONGEST]} … ({len(value) - LONGEST:,} more characters in the file)"
