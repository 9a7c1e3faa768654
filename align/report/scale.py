"""Axes: from values to places on a page, and where the ticks are."""

from __future__ import annotations

import math
from dataclasses import dataclass

LOG_FROM = 1000.0  # largest over smallest value, from which on an axis of positive values is logarithmic


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] onto [start, end] in units of the drawing; `start` may be larger than `end`."""

    low: float
    high: float
    start: float
    end: float
    is_log: bool = False

    def __call__(self, value: float) -> float:
        low, high, value = (math.log10(one) if self.is_log else one for one in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, most: int) -> list[tuple[float, str]]:
        """(value, label), at most so many of them, at round values within the scale."""
        if self.is_log:
            first, last = math.ceil(math.log10(self.low)), math.floor(math.log10(self.high))
            every = max(1, math.ceil((last - first + 1) / most))
            powers = range(first, last + 1, every)
            return [(10.0**power, f"{10.0**power:g}" if -4 < power < 5 else f"1e{power}") for power in powers]
        step = _round_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(index * step, _label(index * step, step)) for index in range(first, last + 1)]


def of_values(low: float, high: float, start: float, end: float) -> Scale:
    """A scale with some air around the values; logarithmic where they are positive and far apart."""
    if low > 0 and high / low >= LOG_FROM:
        air = (high / low) ** 0.04
        return Scale(low / air, high * air, start, end, is_log=True)
    air = (high - low) * 0.05 or abs(high) * 0.1 or 1.0
    return Scale(low - air, high + air, start, end)


def of_steps(last: int, start: float, end: float, first: int = 0) -> Scale:
    return Scale(first, max(last, first + 1), start, end)


def _round_step(least: float) -> float:
    """The smallest of 1, 2, 5, 10, 20, ... (and 0.5, 0.2, ...) that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))


def _label(value: float, step: float) -> str:
    if abs(value) < step / 2:
        return "0"
    if step >= 1000:
        return f"{value / 1e6:g}M" if step >= 1e6 else f"{value / 1e3:g}k"
    plain = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    if step >= 1e-3:
        return plain
    mantissa, power = f"{value:.6e}".split("e")
    return min(f"{float(mantissa):g}e{int(power)}", plain, key=len)
