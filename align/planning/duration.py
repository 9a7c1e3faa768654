"""How long a run will take, from a probe of some of its micro-batches."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# 97.5 % quantiles of Student's t by degrees of freedom, for intervals of 95 % from a few timings.
_T = {1: 12.7, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36}


@dataclass(frozen=True)
class Rate:
    """Seconds a unit of work, and the half width of its interval of 95 %."""

    mean: float
    error: float

    def times(self, work: float) -> Span:
        return Span(self.mean * work, self.error * work)


@dataclass(frozen=True)
class Span:
    """Seconds, give or take `error`."""

    seconds: float
    error: float = 0.0

    @property
    def low(self) -> float:
        return max(self.seconds - self.error, 0.0)

    @property
    def high(self) -> float:
        return self.seconds + self.error


def rate(timings: Sequence[tuple[float, float]]) -> Rate:
    """Of timings (work, seconds): all seconds over all work, with the ratio's standard error (Cochran, 1977, 2.11)."""
    work, seconds = (sum(column) for column in zip(*timings, strict=True))
    mean, count = seconds / work, len(timings)
    if count < 2:
        return Rate(mean, mean)
    residuals = sum((taken - mean * done) ** 2 for done, taken in timings) / (count - 1)
    error = math.sqrt(residuals / count) / (work / count)
    return Rate(mean, _T[min(count - 1, max(_T))] * error)


def total(parts: Sequence[Span]) -> Span:
    """The sum. Parts of one probe err together, so errors are added."""
    return Span(sum(part.seconds for part in parts), sum(part.error for part in parts))


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as a person says them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours / 24:.1f} days"
