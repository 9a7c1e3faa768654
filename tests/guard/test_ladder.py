"""The order of the guard's actions, what skips some, and how the weight of negatives comes back."""

from __future__ import annotations

import math

from align.guard.ladder import CALM, LOWEST, Ladder
from align.guard.options import ACTIONS, ANCHOR, LOWER, ROLLBACK, STOP, WARN


def test_one_action_after_the_other():
    ladder = Ladder(ACTIONS)
    taken = [ladder.alarm(1.2, can_roll_back=True) for _ in ACTIONS]
    assert taken == [[WARN], [LOWER], [ANCHOR], [ROLLBACK], [STOP]]
    assert (ladder.weight, ladder.is_anchored) == (0.5, True)


def test_each_doubling_leaves_one_out_but_milder_measures_are_taken():
    assert Ladder(ACTIONS).alarm(2.0, True) == [LOWER]
    assert Ladder(ACTIONS).alarm(4.0, True) == [LOWER, ANCHOR]
    for excess in (8.0, 1e9, math.inf):
        assert Ladder(ACTIONS).alarm(excess, True) == [LOWER, ANCHOR, ROLLBACK]


def test_nothing_is_stopped_before_all_else_was_tried():
    ladder = Ladder(ACTIONS)
    assert ladder.alarm(100.0, can_roll_back=False) == [LOWER, ANCHOR]
    assert ladder.alarm(100.0, can_roll_back=True) == [ROLLBACK]
    assert ladder.alarm(1.1, can_roll_back=True) == [STOP]


def test_without_a_good_checkpoint_the_next_one_stops():
    ladder = Ladder(ACTIONS)
    assert ladder.alarm(4.0, False) == [LOWER, ANCHOR]
    assert ladder.alarm(1.1, False) == [STOP]


def test_a_ladder_that_may_only_warn_does_so_once_an_alarm():
    ladder = Ladder((WARN,))
    assert ladder.alarm(1.1, True) == [WARN] and ladder.alarm(50.0, True) == []
    assert [ladder.calm(0.1), ladder.calm(0.1)] == [False, False]
    assert ladder.alarm(50.0, True) == [WARN], "the next alarm, however severe, is at least told"


def test_lowering_goes_on_where_it_is_the_last_that_is_allowed():
    ladder = Ladder((WARN, LOWER))
    weights = [(ladder.alarm(1.1, True), ladder.weight) for _ in range(7)]
    assert [weight for _, weight in weights] == [1.0, 0.5, 0.25, 0.125, LOWEST, LOWEST, LOWEST]
    assert weights[-1][0] == []


def test_the_weight_comes_back_in_calm_steps_and_an_anchor_stays():
    ladder = Ladder(ACTIONS)
    ladder.alarm(4.0, True)
    ladder.weight = 0.25
    calm, restless = CALM - 0.01, CALM + 0.01
    assert [ladder.calm(excess) for excess in (calm, restless, calm, calm)] == [False, False, False, True]
    assert ladder.weight == 0.5 and ladder.in_force
    assert [ladder.calm(0.0), ladder.calm(0.0), ladder.weight] == [False, True, 1.0]
    assert [ladder.calm(0.0), ladder.calm(0.0)] == [False, False] and not ladder.in_force
    assert ladder.is_anchored
    assert ladder.alarm(4.0, True) == [LOWER, ROLLBACK], "an anchor that is there is not added again"


def test_what_it_carries_is_all_it_knows():
    ladder, other = Ladder(ACTIONS), Ladder(ACTIONS)
    ladder.alarm(2.0, True)
    ladder.calm(0.1)
    other.restore(ladder.state())
    assert vars(other) == vars(ladder)
    assert [other.calm(0.1), other.weight] == [ladder.calm(0.1), ladder.weight] == [True, 1.0]
