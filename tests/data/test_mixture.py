"""How the places of a step are dealt to groups of rows: every group has its share at any time, to within a row."""

from __future__ import annotations

from collections import Counter

import pytest

from align.data.mixture import Mixture, by_role, fixed


@pytest.mark.parametrize("weights", [[1.0], [1.0, 1.0], [5.0, 1.0], [0.2, 0.5, 0.3], [1.0, 3.0, 7.0, 2.0]])
@pytest.mark.parametrize("rows", [1, 3, 8])
def test_every_group_has_its_share_at_any_time(weights, rows):
    mixture, taken, total = Mixture(fixed(weights), rows), Counter(), sum(weights)
    for step in range(200):
        places = mixture.take(step)
        assert len(places) == rows
        taken.update(places)
        for group, weight in enumerate(weights):
            assert abs(taken[group] - weight / total * rows * (step + 1)) < 1 + 1e-9


def test_shares_that_change():
    """From 3 of 4 to 1 of 4 positives over 101 steps of 8: half of all places in the end, 6 a step first, 2 last."""
    mixture = Mixture(by_role([1.0, 1.0], [True, False], 0.75, 0.25, 101), 8)
    steps = [mixture.take(step).count(0) for step in range(101)]
    assert steps[0] == 6 and steps[-1] == 2 and sum(steps) == pytest.approx(404, abs=1)
    assert all(abs(found - (6 - 4 * step / 100)) < 1.01 for step, found in enumerate(steps))


def test_sources_of_one_role_share_by_weight():
    shares = by_role([3.0, 1.0, 4.0], [True, True, False], 0.4, 0.4, 10)
    assert shares(0) == pytest.approx([0.3, 0.1, 0.6]) == shares(9)


def test_no_step_is_of_one_group_alone_where_both_are_asked_for():
    """One in a hundred: the rare group would be in every twelfth step of eight; every step has one, and no more."""
    mixture = Mixture(fixed([1.0, 99.0]), 8, [{0}, {1}])
    assert all(mixture.take(step).count(0) == 1 for step in range(50))
    alone = Mixture(fixed([1.0, 99.0]), 8)
    assert sum(alone.take(step).count(0) for step in range(50)) == 4


def test_a_group_of_both_serves_either():
    mixture = Mixture(fixed([1.0, 1.0, 98.0]), 4, [{0, 2}, {1, 2}])
    taken = Counter(place for step in range(100) for place in mixture.take(step))
    assert taken[2] == pytest.approx(392, abs=1)


def test_a_step_of_one_place_takes_turns():
    mixture = Mixture(fixed([1.0, 1.0]), 1, [{0}, {1}])
    assert sorted(mixture.take(step)[0] for step in range(10)) == [0] * 5 + [1] * 5


def test_it_goes_on_from_what_is_due():
    weights, first = [0.31, 0.69], Mixture(fixed([0.31, 0.69]), 3)
    expected = [first.take(step) for step in range(20)]
    half = Mixture(fixed(weights), 3)
    for step in range(7):
        half.take(step)
    other = Mixture(fixed(weights), 3)
    other.due = list(half.due)
    assert [other.take(step) for step in range(7, 20)] == expected[7:]
