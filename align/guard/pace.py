"""When the guard measures: as often as it may without taking more than its share of the time."""

from __future__ import annotations

import math

SHARE = 0.025  # of the time of the optimiser steps; 0.03 is promised, and the next measurement may take longer
HURRY = 4  # how many times as often it measures while something is being mended; that is made up for afterwards
GAP = 3  # fewest steps between two measurements that nobody has fixed: an action needs time to show


class Pace:
    """Counts seconds and says at which step to measure next. `every` fixes it; None adapts it to what it takes.

    Seconds must be those of the slowest rank: then all ranks come to the same steps.
    """

    def __init__(self, every: int | None):
        self.every = every
        self.steps, self.step_seconds = 0, 0.0  # steps that were timed, and what they took
        self.spent = self.cost = 0.0  # seconds of everything the guard did, and of the last measurement
        self.measurements, self.last = 0, 0  # the step of the last one
        self.next = every or 1  # the step after which is measured, or looked at whether there is time for it

    def took_step(self, seconds: float) -> None:
        self.steps += 1
        self.step_seconds += seconds

    def prepared(self, seconds: float) -> None:
        """The start was measured, which is about what every other measurement will take."""
        self.spent, self.cost = seconds, seconds

    def measured(self, seconds: float, step: int) -> None:
        self.spent, self.cost = self.spent + seconds, seconds
        self.measurements, self.last = self.measurements + 1, step

    @property
    def share(self) -> float:
        """Seconds the guard took, over those of the steps."""
        return self.spent / self.step_seconds if self.step_seconds else 0.0

    def wait(self) -> int:
        """Steps until there is time for another measurement."""
        missing = (self.spent + self.cost) / SHARE - self.step_seconds
        return max(0, math.ceil(missing * self.steps / self.step_seconds))

    def is_close(self, step: int) -> bool:
        """Whether it is too early after the last measurement for one that was not planned."""
        return step < self.last + GAP

    def plan(self, step: int, in_force: bool) -> None:
        """Sets the next step to measure at, `step` being done. `in_force`: something is being mended."""
        if self.every is not None:
            self.next = step + self.every - step % self.every
            return
        a_step = self.step_seconds / self.steps
        self.next = step + max(GAP, math.ceil(self.cost / SHARE / a_step / HURRY) if in_force else self.wait())

    def state(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "every"}

    def restore(self, state: dict, step: int) -> None:
        """Goes on at `step` where another one was; a recipe may have another `every` now."""
        vars(self).update(state)
        if self.every is not None:
            self.next = step + self.every - step % self.every
