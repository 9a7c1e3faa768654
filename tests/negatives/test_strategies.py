"""Strategies of mining, against numbers derived by hand and independent loops."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from align.negatives import strategies
from align.negatives.strategies import Candidates

SCORES = np.array([0.2, 0.9, 0.5, 0.94, 0.96, 0.7])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pick(options: dict, scores=SCORES, positive=1.0, most=10, vectors=None, seed=0) -> list[int]:
    row = Candidates(np.array(scores), positive, vectors)
    return strategies.build(options).pick(row, most, rng(seed)).tolist()


def test_top_k_is_the_highest_first():
    assert pick({"name": "top_k"}, most=3) == [4, 3, 1]
    assert sorted(pick({"name": "top_k"})) == list(range(6))  # no more than there are


def test_ties_are_broken_by_chance():
    found = [pick({"name": "top_k"}, [1.0, 1.0, 1.0, 0.0], most=1, seed=seed)[0] for seed in range(300)]
    assert {place: found.count(place) for place in set(found)}.keys() == {0, 1, 2}
    assert all(70 < found.count(place) < 130 for place in range(3))  # 100 each, 3.7 standard deviations


def test_random_takes_each_equally_often():
    found = list(itertools.chain(*(pick({"name": "random"}, most=2, seed=seed) for seed in range(600))))
    assert all(150 < found.count(place) < 250 for place in range(6))  # 200 each
    assert all(len(set(pick({"name": "random"}, most=4, seed=seed))) == 4 for seed in range(20))


def test_margin_and_percentage_by_hand():
    """With s+ = 1: below 0.95 are all but 0.96; below 0.9 - a margin of 0.1 - 0.9 itself is not."""
    assert pick({"name": "percentage", "share": 0.95}) == [3, 1, 5, 2, 0]
    assert pick({"name": "margin", "margin": 0.05}) == [3, 1, 5, 2, 0]
    assert pick({"name": "margin", "margin": 0.1}, [0.9, 0.89, 0.5], positive=1.0) == [1, 2]
    assert pick({"name": "percentage", "share": 0.5}, [3.0, 2.4, 1.0], positive=5.0) == [1, 2]
    assert pick({"name": "margin", "margin": 2.0}, [-5.0, -7.5, -9.0], positive=-5.0) == [1, 2]  # nats
    assert pick({"name": "margin", "margin": 0.9}, [0.5, 0.2], positive=1.0) == []


def test_what_is_too_close_is_what_is_never_picked():
    row = Candidates(SCORES, 1.0)
    for options in ({"name": "percentage", "share": 0.93}, {"name": "margin", "margin": 0.07}):
        close = strategies.too_close(strategies.build(options), row)
        assert close.tolist() == [False, False, False, True, True, False]
        assert sorted(np.flatnonzero(~close)) == sorted(pick(options))
    assert not strategies.too_close(strategies.build({"name": "top_k"}), row).any()


def test_the_ambiguous_band_is_drawn_in_its_proportions():
    """Scores 0, 1, 2 with s+ = 2, a = 1, b = 1: weights e^-1, 1, e^-1, so p = 0.2119, 0.5761, 0.2119.

    Without replacement the pair {0, 1} comes first or second with 0.2119 * 0.5761/0.7881 + 0.5761 * 0.2119/0.4239.
    """
    p = np.array([math.exp(-1), 1.0, math.exp(-1)])
    p /= p.sum()
    assert p == pytest.approx([0.2119, 0.5761, 0.2119], abs=1e-4)
    drawn = [strategies.ambiguous(np.array([0.0, 1.0, 2.0]), 2.0, 2, rng(seed), a=1.0, b=1.0) for seed in range(3000)]
    first = [sum(one[0] == place for one in drawn) / 3000 for place in range(3)]
    assert first == pytest.approx(p, abs=0.04)  # 4.4 standard deviations
    both = p[0] * p[1] / (1 - p[0]) + p[1] * p[0] / (1 - p[1])
    assert sum(set(one) == {0, 1} for one in drawn) / 3000 == pytest.approx(both, abs=0.04)


def test_a_narrow_band_takes_what_is_b_below_the_positive():
    options = {"name": "ambiguous", "a": 1e4, "b": 0.3}
    assert [pick(options, most=1, seed=seed) for seed in range(5)] == [[5]] * 5  # 0.7 = 1 - 0.3
    far = pick({"name": "ambiguous", "a": 100.0}, [-300.0, -400.0], positive=-10.0, most=2)
    assert sorted(far) == [0, 1]  # probabilities below the smallest float are still drawn from


def test_runner_up_by_hand():
    assert strategies.runner_up_ranks(1000, 0.03, 0.04) == (30, 40)
    assert strategies.runner_up_ranks(100, 0.07, 0.14) == (7, 14)  # 0.07 * 100 is a little above 7 in floats
    assert strategies.runner_up_ranks(16, 0.03, 0.04) == (1, 2)  # of few the second
    assert strategies.runner_up_ranks(1, 0.03, 0.04) == (0, 1)
    assert strategies.runner_up_ranks(3, 0.99, 1.0) == (2, 3)
    assert strategies.runner_up_ranks(10, 0.0, 0.2) == (0, 2)
    assert pick({"name": "runner_up"}, most=3) == [3]
    band = {tuple(pick({"name": "runner_up", "first": 0.3, "last": 1.0}, most=2, seed=seed)) for seed in range(60)}
    wanted = [1, 5, 2, 0]  # behind the best two of six, by score
    assert band == {(one, other) for at, one in enumerate(wanted) for other in wanted[at + 1 :]}


def unit(*degrees: float) -> np.ndarray:
    return np.array([[math.cos(math.radians(one)), math.sin(math.radians(one))] for one in degrees], np.float32)


def test_clusters_take_the_best_of_each_direction():
    """Directions near 0, 90 and 180 degrees; the best scores are all in the first group."""
    vectors, scores = unit(0, 5, 10, 88, 93, 178, 183), [0.9, 0.95, 0.8, 0.1, 0.2, 0.6, 0.5]
    assert pick({"name": "clusters"}, scores, most=3, vectors=vectors) == [1, 5, 4]
    assert pick({"name": "clusters"}, scores, most=2, vectors=vectors)[0] == 1
    assert sorted(pick({"name": "clusters"}, scores, most=9, vectors=vectors)) == list(range(7))
    same = np.repeat(unit(30), 4, axis=0)
    assert pick({"name": "clusters"}, [1, 2, 3, 4], most=2, vectors=same) == [3]  # one direction, one negative


def test_clusters_are_those_of_a_plain_k_means():
    draw = rng(3)
    vectors = draw.normal(size=(30, 5)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = draw.normal(size=30)
    centres = [vectors[int(scores.argmax())]]
    while len(centres) < 4:
        centres.append(vectors[min(range(30), key=lambda one: max(float(vectors[one] @ c) for c in centres))])
    for _ in range(20):
        of = [max(range(4), key=lambda c: float(vectors[one] @ centres[c])) for one in range(30)]
        sums = [sum(vectors[one] for one in range(30) if of[one] == c) for c in range(4)]
        centres = [one / np.linalg.norm(one) for one in sums]
    best = [max((one for one in range(30) if of[one] == c), key=lambda one: scores[one]) for c in range(4)]
    assert set(pick({"name": "clusters"}, scores, most=4, vectors=vectors)) == set(best)


def test_ches_by_hand_and_by_sums():
    """<(1, 2), (3, -1)> - |(1, 2)|^2 = 1 - 5."""
    assert strategies.ches(np.array([1.0, 2.0]), np.array([3.0, -1.0])) == -4.0
    draw = rng(1)
    good, bad = draw.normal(size=(7, 4)), draw.normal(size=(3, 4))  # tokens x hidden
    inner = sum(float(one @ other) for one in good for other in bad) / (7 * 3)
    norm = sum(float(one @ other) for one in good for other in good) / (7 * 7)
    assert strategies.ches(good.mean(0), bad.mean(0)) == pytest.approx(inner - norm)


def test_the_lowest_share():
    values = np.array([5.0, 1.0, 4.0, 2.0, 3.0])
    assert strategies.lowest_share(values, 0.4) == 2.0
    assert strategies.lowest_share(values, 1.0) == 5.0
    assert strategies.lowest_share(values, 0.01) == 1.0  # one at least


def test_the_options_of_all_strategies_are_written_out():
    for name in strategies.STRATEGIES:
        options = strategies.resolved({"name": name})
        assert strategies.resolved(options) == options and options["name"] == name
