"""Line plots as inline SVG. Lines differ in colour, dash and marker, so that a grey print-out can be read, too.

Colours are of Okabe and Ito's palette (2008), told apart under all common colour blindness; classes `s0` to `s7` of the
page's style hold them, for light and dark.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.report import scale
from align.report.markup import attribute, script_json, text
from align.report.scale import Scale

WIDTH, HEIGHT = 480, 246
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 460, 30, 208
_DASHES = ("", "7 3", "2 3", "9 3 2 3", "12 4", "4 2", "9 2 2 2 2 2", "")
_SHAPES = (  # markers around (0, 0)
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0",
    "M-3.2 -3.2h6.4v6.4h-6.4z",
    "M0 -4.2L4 3.2H-4z",
    "M0 -4.6L4.6 0L0 4.6L-4.6 0z",
    "M0 4.2L4 -3.2H-4z",
    "M-1.3 -4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z",
    "M0 -4.4L4.2 -1.4L2.6 3.6H-2.6L-4.2 -1.4z",
    "M-4 -4L4 4L4 -4L-4 4z",
)
STYLES = len(_SHAPES)
NEUTRAL = 7  # the style of a line that is alone
_MARKERS = 6  # most markers on a line
_DIGIT = 10.5  # width of a bold digit, as large as narrow screens show it
_PLAIN_DIGIT, _LONGEST = 7.2, 7  # width of one elsewhere; ticks of more characters are squeezed


@dataclass(frozen=True)
class Line:
    label: str
    style: int  # the same style is the same thing in every plot of a page
    points: np.ndarray  # (P, 4) step, mean, smallest, largest value


@dataclass(frozen=True)
class Flag:
    """Something that happened at a step, with the number it has in the page's table of events."""

    step: int
    number: int
    text: str


@dataclass(frozen=True)
class Plot:
    """`unit` is part of the title; steps go from 0 to `last_step`. `is_named`: the title tells not what a line is."""

    title: str
    unit: str
    lines: Sequence[Line]
    last_step: int
    flags: Sequence[Flag] = ()
    is_named: bool = False

    def figure(self) -> str:
        """The plot with title, legend and a line that reads values out."""
        x, y = self._scales()
        unit = ", ".join(filter(None, (self.unit, "logarithmic" if y.is_log else "")))
        has_legend = self.is_named or len(self.lines) > 1
        legend = f'<ul class="legend">{"".join(map(_legend, self.lines))}</ul>' if has_legend else ""
        says = f"{self.title}, {self.unit}: " + "; ".join(_said(line) for line in self.lines)
        title = f"<figcaption><b>{text(self.title)}</b> <small>{text(unit)}</small></figcaption>"
        phases = [index / len(self.lines) for index in range(len(self.lines))] if len(self.lines) > 1 else [None]
        drawn = "".join(_line(line, x, y, phase) for line, phase in zip(self.lines, phases, strict=True))
        svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{attribute(says)}">'
        cursor = f'<line class="cursor" y1="{_TOP}" y2="{_BOTTOM}" x1="-9" x2="-9"/>'
        return (
            f'<figure class="plot">{title}{legend}{svg}{_axes(x, y)}{drawn}{_flags(self.flags, x)}{cursor}</svg>'
            '<p class="readout" aria-live="polite"></p>'
            f'<script type="application/json">{script_json(self._data(x))}</script></figure>\n'
        )

    def _data(self, x: Scale) -> dict:
        """What the script needs: where steps lie, and for each line its steps, means, smallest and largest values."""
        lines = []
        for line in self.lines:
            steps, *values = line.points.T
            has_range = bool((line.points[:, 2] != line.points[:, 3]).any())
            columns = values if has_range else values[:1]
            lines.append([line.label, [round(step, 1) for step in steps.tolist()], *map(_rounded, columns)])
        return {
            "x": [x.low, x.high, x.start, x.end],
            "lines": lines,
            "flags": [[flag.step, f"{flag.number}: {flag.text}"] for flag in self.flags[:500]],
        }

    def _scales(self) -> tuple[Scale, Scale]:
        low = min(float(line.points[:, 2].min()) for line in self.lines)
        high = max(float(line.points[:, 3].max()) for line in self.lines)
        return scale.of_steps(self.last_step, _LEFT, _RIGHT), scale.of_values(low, high, _BOTTOM, _TOP)


def _rounded(values: np.ndarray) -> list[float]:
    return [float(f"{value:.6g}") for value in values.tolist()]


def _axes(x: Scale, y: Scale) -> str:
    parts = []
    for value, label in y.ticks(5):
        at = f"{y(value):.1f}"
        parts.append(f'<path class="grid" d="M{_LEFT} {at}H{_RIGHT}"/>')
        place = f'x="{_LEFT - 6}" y="{at}" dy=".35em" text-anchor="end"{_squeezed(label)}'
        parts.append(f'<text class="tick" {place}>{text(label)}</text>')
    for value, label in x.ticks(6):
        at = f"{x(value):.1f}"
        parts.append(f'<path class="axis" d="M{at} {_BOTTOM}v4"/>')
        parts.append(f'<text class="tick" x="{at}" y="{_BOTTOM + 16}" text-anchor="middle">{text(label)}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_TOP}V{_BOTTOM}H{_RIGHT}"/>')
    parts.append(f'<text class="tick" x="{_RIGHT}" y="{HEIGHT - 4}" text-anchor="end">optimiser step</text>')
    return "".join(parts)


def _squeezed(label: str) -> str:
    """The attributes that keep a long label within the left margin."""
    if len(label) <= _LONGEST:
        return ""
    return f' textLength="{min(_LEFT - 6, _PLAIN_DIGIT * len(label)):.1f}" lengthAdjust="spacingAndGlyphs"'


def _line(line: Line, x: Scale, y: Scale, phase: float | None) -> str:
    """The mean, the range of each bucket where it is one, and markers, which `phase` keeps off those of other lines.

    None: there are no others, and no markers are needed.
    """
    steps = [f"{x(step):.1f}" for step in line.points[:, 0]]
    mean, low, high = ([f"{y(value):.1f}" for value in line.points[:, column]] for column in (1, 2, 3))
    name, band = f"s{line.style % STYLES}", ""
    if low != high:
        there, back = zip(steps, high, strict=True), zip(reversed(steps), reversed(low), strict=True)
        outline = "L".join(f"{at} {value}" for at, value in [*there, *back])
        band = f'<path class="band {name}" d="M{outline}z"/>'
    path = "L".join(f"{at} {value}" for at, value in zip(steps, mean, strict=True))
    dash = _DASHES[line.style % STYLES]
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    parts = [band, f'<path class="line {name}"{dashed} d="M{path}"/>']
    for at in _marked(len(steps), phase) if phase is not None or len(steps) == 1 else ():
        parts.append(f'<path class="mark {name}" transform="translate({steps[at]} {mean[at]})" d="{_shape(line)}"/>')
    return "".join(parts)


def _marked(count: int, phase: float) -> list[int]:
    """Which points of a line bear a marker."""
    if count <= _MARKERS:
        return list(range(count))
    gap = count / _MARKERS
    return sorted({min(int((index + 0.2 + 0.6 * phase) * gap), count - 1) for index in range(_MARKERS)})


def _flags(flags: Sequence[Flag], x: Scale) -> str:
    """Numbered flags; of those whose numbers would lie on each other, the first bears how many more there are."""
    groups: list[list[Flag]] = []
    for flag in sorted(flags, key=lambda one: one.step):
        if groups and x(flag.step) < x(groups[-1][0].step) + _DIGIT * (len(_told(groups[-1])) + 0.5):
            groups[-1].append(flag)
        else:
            groups.append([flag])
    parts = []
    for group in groups:
        at, told = x(group[0].step), _told(group)
        says = "; ".join(f"step {flag.step}: {flag.text}" for flag in group[:5])
        parts.append(
            f'<g class="flag"><title>{text(says)}</title><path d="M{at:.1f} {_BOTTOM}V{_TOP - 22}"/>'
            f'<text x="{min(at + 2, WIDTH - _DIGIT * len(told)):.1f}" y="{_TOP - 12}">{told}</text></g>'
        )
    return "".join(parts)


def _told(group: Sequence[Flag]) -> str:
    """The number of the first event, and how many others its flag stands for."""
    return f"{group[0].number}+{len(group) - 1}" if len(group) > 1 else str(group[0].number)


def _legend(line: Line) -> str:
    dash, name = _DASHES[line.style % STYLES], f"s{line.style % STYLES}"
    dashed = f' stroke-dasharray="{dash}"' if dash else ""
    sample = (
        f'<svg viewBox="0 0 34 10" class="sample" aria-hidden="true"><path class="line {name}"{dashed} d="M1 5H33"/>'
        f'<path class="mark {name}" transform="translate(17 5)" d="{_shape(line)}"/></svg>'
    )
    return f"<li>{sample}{text(line.label)}</li>"


def _shape(line: Line) -> str:
    return _SHAPES[line.style % STYLES]


def _said(line: Line) -> str:
    first, last = line.points[0], line.points[-1]
    return f"{line.label} from {first[1]:.4g} at step {first[0]:g} to {last[1]:.4g} at step {last[0]:g}"
