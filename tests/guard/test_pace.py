"""How often the guard measures: its share of the time, by simulated clocks."""

from __future__ import annotations

import pytest

from align.guard.pace import GAP, Pace


def simulate(step_seconds: float, cost: float, steps: int, in_force: bool = False) -> Pace:
    """A run in which every step and every measurement takes as long as the others."""
    pace = Pace(None)
    pace.prepared(cost)
    for step in range(1, steps + 1):
        pace.took_step(step_seconds)
        if step >= pace.next:
            if in_force or not pace.wait():
                pace.measured(cost, step)
                assert in_force or pace.share <= 0.03
            pace.plan(step, in_force)
    return pace


@pytest.mark.parametrize(("step_seconds", "cost"), [(10.0, 2.0), (0.05, 1.0), (3.0, 0.3), (1.0, 1e-4)])
def test_stays_under_its_share_and_uses_it(step_seconds, cost):
    pace = simulate(step_seconds, cost, 5000)
    assert pace.share <= 0.03 and pace.measurements >= 2
    assert pace.share > 0.015 or pace.measurements >= 5000 // GAP - 1, "time for more was left"


def test_it_hurries_while_something_is_mended():
    calm, busy = (simulate(1.0, 1.0, 2000, in_force).measurements for in_force in (False, True))
    assert busy > 3 * calm


def test_a_fixed_number_of_steps_is_kept_whatever_it_takes():
    pace = Pace(7)
    pace.prepared(100.0)
    at = []
    for step in range(1, 30):
        pace.took_step(0.001)
        if step >= pace.next:
            pace.measured(100.0, step)
            at.append(step)
            pace.plan(step, in_force=False)
    assert at == [7, 14, 21, 28]


def test_a_measurement_that_was_not_planned_shifts_no_fixed_one():
    pace = Pace(4)
    pace.plan(5, in_force=True)
    assert pace.next == 8


def test_gone_on_with_it_measures_at_the_same_steps():
    pace = Pace(4)
    pace.restore(simulate(1.0, 1.0, 100).state(), step=10)
    assert pace.next == 12 and pace.steps == 100
