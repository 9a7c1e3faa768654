"""pass@k against its definition, and its intervals."""

import itertools

import numpy as np
import pytest

from align.evaluation.pass_at_k import difference, estimate, pass_at_k


@pytest.mark.parametrize(("answers", "right"), [(1, 0), (1, 1), (5, 2), (8, 0), (8, 1), (8, 8)])
def test_it_is_the_share_of_subsets_with_a_right_answer(answers, right):
    marks = [True] * right + [False] * (answers - right)
    for k in range(1, answers + 1):
        subsets = list(itertools.combinations(marks, k))
        assert pass_at_k(answers, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_it_is_unbiased():
    """From few answers to many prompts of one difficulty comes the chance that one of k is right."""
    right = np.random.default_rng(0).binomial(6, 0.3, size=40_000)
    assert np.mean([pass_at_k(6, int(one), 4) for one in right]) == pytest.approx(1 - 0.7**4, abs=0.005)


@pytest.mark.parametrize(("answers", "right", "k"), [(3, 1, 4), (3, 4, 1), (3, 1, 0)])
def test_what_says_nothing_is_refused(answers, right, k):
    with pytest.raises(ValueError, match="say nothing"):
        pass_at_k(answers, right, k)


def test_intervals_hold_what_they_promise():
    draw, held = np.random.default_rng(1), 0
    for trial in range(60):
        counts = [(4, int(draw.binomial(4, p))) for p in draw.beta(2, 3, size=50)]
        found = estimate([counts], 1, seed=trial)
        held += found.low <= 0.4 <= found.high
    assert 50 <= held <= 60  # 95 %


def test_differences_are_taken_prompt_by_prompt():
    """What both find easy or hard takes no part in the interval."""
    easy = [(8, 8), (8, 0)] * 20
    better = [(8, 8), (8, 1)] * 20
    found = difference([better], [easy], 1)
    assert found.value == pytest.approx(1 / 16) and found.low > 0.03
    assert estimate([better], 1).low < estimate([easy], 1).high


def test_runs_that_disagree_widen_the_interval():
    same = estimate([[(4, 2)] * 30] * 3, 1)
    apart = estimate([[(4, 1)] * 30, [(4, 2)] * 30, [(4, 3)] * 30], 1)
    assert same == (0.5, 0.5, 0.5)
    assert apart.value == 0.5 and apart.low < 0.35 and apart.high > 0.65
