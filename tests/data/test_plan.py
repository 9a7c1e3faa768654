"""Which rows make up a step: a pure function of seed and step, every row as often as its weight says."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest

from align.data.mixture import Mixture, fixed
from align.data.plan import PlannedFeed, StepPlan
from align.errors import UserError
from tests import tiny


def plan(weights: list[float] | int, **changes: object) -> StepPlan:
    """A plan for rows of these weights, or for so many rows of weight 1."""
    if isinstance(weights, int):
        weights = [1.0] * weights
    options = {"prompts_per_step": 4, "epochs": 1.0, "max_steps": None, "seed": 0} | changes
    return StepPlan(weights, **options)


def order(steps: StepPlan) -> list[int]:
    return [row for step in range(len(steps)) for row in steps.rows(step)]


@pytest.mark.parametrize("count", [1, 4, 10, 101])
def test_every_row_once_an_epoch(count):
    steps = plan(count, epochs=3)
    for epoch in range(3):
        assert sorted(order(steps)[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert steps.epochs == 3.0


def test_epochs_differ_and_are_shuffled():
    rows = order(plan(50, epochs=3))
    epochs = [tuple(rows[start : start + 50]) for start in (0, 50, 100)]
    assert len({*epochs, tuple(range(50))}) == 4


def test_same_seed_same_plan():
    assert order(plan(50, epochs=2.5, seed=7)) == order(plan(50, epochs=2.5, seed=7))


def test_another_seed_another_plan():
    """Also where one seed's second epoch might be the other's first."""
    first, second = order(plan(50, epochs=2, seed=0)), order(plan(50, epochs=2, seed=1))
    assert first[:50] != second[:50] and first[50:] != second[:50]


def test_a_longer_run_begins_as_the_shorter():
    assert order(plan(10, epochs=3))[:17] == order(plan(10, epochs=1.7))


def test_step_size_does_not_change_the_order():
    assert order(plan(10, prompts_per_step=3)) == order(plan(10, prompts_per_step=10)) == order(plan(10))


def test_steps_are_full_but_the_last():
    steps = plan(10, epochs=1, prompts_per_step=4)
    assert len(steps) == 3
    assert [len(steps.rows(step)) for step in range(3)] == [4, 4, 2]


def test_a_step_runs_across_the_border_of_two_epochs():
    steps = plan(10, epochs=2, prompts_per_step=4)
    assert [len(steps.rows(step)) for step in range(len(steps))] == [4] * 5
    whole = order(plan(10, epochs=2, prompts_per_step=1))
    assert steps.rows(2) == whole[8:12]


def test_behind_the_end_there_are_no_rows():
    steps = plan(10)
    assert steps.rows(len(steps)) == []


def test_more_prompts_a_step_than_rows():
    steps = plan(3, prompts_per_step=16)
    assert len(steps) == 1 and sorted(steps.rows(0)) == [0, 1, 2]


@pytest.mark.parametrize("max_steps", [1, 2, 7])
def test_max_steps_are_full_steps_however_many_epochs_that_takes(max_steps):
    steps = plan(10, max_steps=max_steps, epochs=1)
    assert len(steps) == max_steps
    assert [len(steps.rows(step)) for step in range(max_steps)] == [4] * max_steps
    assert steps.epochs == pytest.approx(max_steps * 4 / 10)


def test_max_steps_takes_the_rows_in_the_same_order():
    assert order(plan(10, max_steps=5)) == order(plan(10, epochs=2))


@pytest.mark.parametrize("epochs, rows", [(0.5, 5), (1.5, 15), (0.25, 2), (2.0, 20), (0.1, 1)])
def test_fractional_epochs(epochs, rows):
    steps = plan(10, epochs=epochs)
    assert len(order(steps)) == rows
    assert max(Counter(order(steps)).values()) - min(Counter(order(steps)).values()) <= 1
    assert steps.epochs == pytest.approx(rows / 10)


@pytest.mark.parametrize("epochs", [0.04, 1e-9])
def test_there_is_a_step_however_small_the_epochs(epochs):
    assert len(plan(10, epochs=epochs)) == 1 == len(order(plan(10, epochs=epochs)))


# Weights


def test_a_row_of_weight_two_comes_twice_an_epoch():
    rows = order(plan([2.0, 1.0, 3.0], epochs=2))
    assert Counter(rows[:6]) == Counter(rows[6:]) == {0: 2, 1: 1, 2: 3}


def test_half_the_rows_of_weight_a_half_come_in_an_epoch():
    rows = Counter(order(plan([0.5] * 1000)))
    assert sum(rows.values()) == 500
    assert 450 <= len(rows) <= 500  # the epoch itself has 500 +- 16; what it lacks comes from the next


def test_a_row_of_weight_a_half_comes_every_second_epoch_in_expectation():
    rows = Counter(order(plan([0.5, 1.0, 1.5, 2.0], epochs=400)))
    once = rows[1]
    assert 390 <= once <= 410
    assert rows[0] / once == pytest.approx(0.5, abs=0.1)  # 4 standard deviations of 400 tosses
    assert rows[2] / once == pytest.approx(1.5, abs=0.1)
    assert rows[3] / once == pytest.approx(2.0, abs=0.01)


def test_the_share_of_a_fractional_weight_changes_with_epoch_and_seed():
    weights = [0.5] * 40 + [1.0] * 20
    drawn = [frozenset(order(plan(weights, epochs=0.5, seed=seed))) for seed in range(4)]
    assert len(set(drawn)) == 4
    chosen = {epoch: frozenset(order(plan(weights, epochs=2))[epoch * 20 : epoch * 20 + 20]) for epoch in (0, 2)}
    assert chosen[0] != chosen[2]


def test_epochs_count_rows_by_weight():
    """An epoch of weights 2 and 0.5 is 2.5 rows: as many as come in expectation."""
    steps = plan([2.0, 0.5], epochs=4, prompts_per_step=5)
    assert len(steps) == 2 and len(order(steps)) == 10


# Rows between two steps


def test_rows_between_are_distinct_in_the_order_of_first_use():
    steps = plan(6, epochs=3, prompts_per_step=4)
    used = [row for step in (1, 2, 3) for row in steps.rows(step)]
    assert len(used) == 12
    assert steps.rows_between(1, 4) == sorted(set(used), key=used.index)


def test_rows_between_of_one_step_of_none_and_beyond_the_end():
    steps = plan(10)
    assert steps.rows_between(0, 1) == steps.rows(0)
    assert steps.rows_between(2, 2) == []
    assert steps.rows_between(2, 99) == steps.rows(2)


def test_rows_between_of_all_steps_are_all_rows():
    steps = plan(10, epochs=2)
    assert sorted(steps.rows_between(0, len(steps))) == list(range(10))


# Groups


def half_and_half(steps: int) -> Mixture:
    return Mixture(fixed([1.0, 1.0]), 4, [{0}, {1}])


def test_groups_have_epochs_of_their_own():
    """Two positives and six negatives, half of each step each: positives come three times as often."""
    steps = plan([1.0] * 8, group_of=[1, 0, 1, 1, 0, 1, 1, 1], mixture=half_and_half, epochs=3)
    assert len(steps) == 6 and [len(steps.rows(step)) for step in range(6)] == [4] * 6
    assert Counter(order(steps)) == {row: 6 if row in (1, 4) else 2 for row in range(8)}
    for step in range(6):
        assert sum(row in (1, 4) for row in steps.rows(step)) == 2


def test_groups_change_nothing_of_a_seed():
    make = partial(plan, [1.0] * 8, group_of=[1, 0, 1, 1, 0, 1, 1, 1], mixture=half_and_half)
    assert order(make(seed=3)) == order(make(seed=3)) != order(make(seed=4))
    assert order(make(epochs=3))[:8] == order(make(epochs=1))


def feed(**changes) -> PlannedFeed:
    rows = [tiny.row("Hi?", positives=["yes"], negatives=["no", "never"]), tiny.row("And?", negatives=["nothing"])]
    rows[1] = tiny.row(changes.get("prompt", "And?"), negatives=changes.get("negatives", ["nothing"]))
    return PlannedFeed(rows[:: changes.get("order", 1)], plan(2))


@pytest.mark.parametrize("change", [{"prompt": "But?"}, {"negatives": ["nothin"]}, {"order": -1}])
def test_a_run_does_not_go_on_with_other_rows(change):
    state = feed().state()
    feed().restore(state, 1, True)
    with pytest.raises(
        UserError, match=r"^data\.sources: the rows are not those that the checkpoint's run learned from"
    ):
        feed(**change).restore(state, 1, True)


def test_a_run_that_streamed_does_not_go_on_in_memory():
    with pytest.raises(
        UserError, match=r"^data\.streaming: the checkpoint's run streamed its rows; resume with the same"
    ):
        feed().restore({"channels": []}, 1, True)


def test_epochs_are_told_by_title():
    """Two rows of a source twice as often as the six of another."""
    rows = [tiny.row(f"{n}?", negatives=["no"]) for n in range(8)]
    steps = PlannedFeed(rows, plan([2.0] * 2 + [1.0] * 6, epochs=2), ["a"] * 2 + ["b"] * 6)
    assert steps.epochs() == {"a": 4.0, "b": 2.0}
    assert PlannedFeed(rows, plan(8)).epochs() == {"rows": 1.0}
