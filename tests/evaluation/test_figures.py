"""Figures: values, changes, what is undefined, and intervals against other resampling."""

from __future__ import annotations

import numpy as np
import pytest

from align.evaluation import figures
from align.evaluation.intervals import mcnemar


def test_a_mean_and_its_change_to_the_base():
    draw = np.random.default_rng(0)
    base = draw.normal(2.0, 1.0, 80)
    found = figures.means({"base": base, "policy": base + 0.5 + draw.normal(0, 0.01, 80)})
    assert found["base"] == {"value": pytest.approx(base.mean()), "interval": found["base"]["interval"]}
    half = 1.96 * base.std() / np.sqrt(80)
    np.testing.assert_allclose(found["base"]["interval"], [base.mean() - half, base.mean() + half], atol=0.03)
    assert found["policy"]["change"] == pytest.approx(0.5, abs=0.004)
    low, high = found["policy"]["change_interval"]
    assert 0.49 < low < high < 0.51, "the same rows for both"


def test_a_ratio_is_a_mean_over_tokens_whose_interval_knows_the_rows():
    sums, tokens = np.array([-10.0, -1.0, -30.0]), np.array([10.0, 2.0, 10.0])
    found = figures.ratios({"base": sums}, tokens)["base"]
    assert found["value"] == pytest.approx(-41 / 22)
    draw = np.random.default_rng(7)
    drawn = []
    for _ in range(4000):
        rows = draw.integers(3, size=3)
        drawn.append(sums[rows].sum() / tokens[rows].sum())
    np.testing.assert_allclose(found["interval"], np.quantile(drawn, [0.025, 0.975]), atol=0.05)


def test_shares_count_what_only_one_has():
    base, policy = np.array([True, True, True, False]), np.array([True, False, False, True])
    found = figures.shares({"base": base, "policy": policy})["policy"]
    assert (found["won"], found["lost"], found["p"]) == (1, 2, mcnemar(1, 2))
    assert found["value"] == 0.5 and found["change"] == -0.25


def test_portions_are_shares_of_rows_where_they_are_all_or_nothing():
    whole = figures.portions({"base": np.array([0.0, 1.0, 1.0]), "policy": np.array([0.0, 0.0, 1.0])})
    assert (whole["policy"]["won"], whole["policy"]["lost"]) == (0, 1)
    parts = figures.portions({"base": np.array([0.0, 1.0, 1.0]), "policy": np.array([0.5, 0.0, 1.0])})
    assert "p" not in parts["policy"] and parts["policy"]["change"] == pytest.approx(-0.5 / 3)


def test_what_has_not_happened_may_happen():
    """No refusal among 20 answers, neither before nor after: that is no proof that there never is one."""
    never = np.zeros(20, bool)
    found = figures.shares({"base": never, "policy": never})
    assert found["base"] == {"value": 0.0, "interval": [0.0, pytest.approx(3.8416 / 23.8416)]}
    low, high = found["policy"]["change_interval"]
    assert low < -0.05 and high > 0.05 and found["policy"]["p"] == 1


def test_what_is_undefined_is_none_and_what_is_now_and_then_has_an_interval():
    def of(columns):
        return columns[..., 0] / columns[..., 1]

    never, once = np.zeros((30, 2)), np.zeros((30, 2))
    once[0] = 1
    found = figures.figures(of, {"base": [never], "policy": [once]})
    assert found["base"] == {"value": None, "interval": [None, None]}
    assert found["policy"]["value"] == 1 and found["policy"]["change"] is None
    once[:2] = (1, 2), (1, 1)
    low, high = figures.figures(of, {"policy": [once]})["policy"]["interval"]
    assert (low, high) == (0.5, 1), "of the resamples that have a row with a value"


@pytest.mark.parametrize("rows", [1, 20])
def test_rows_that_do_not_differ_tell_nothing_of_others(rows):
    found = figures.means({"base": np.full(rows, 0.1), "policy": np.full(rows, 0.3)})["policy"]
    assert found == {"value": pytest.approx(0.3), "interval": [None, None], "change": pytest.approx(0.2),
                     "change_interval": [None, None]}  # fmt: skip


def test_groups_are_resampled_apart():
    zeros = np.linspace(-0.01, 0.01, 20)[:, None]
    ones = 1 + zeros
    mixed = np.concatenate([ones, zeros])

    def average(*groups):
        return sum(group[..., 0] for group in groups) / len(groups)

    low, high = figures.figures(average, {"m": [ones, zeros]})["m"]["interval"]
    assert 0.49 < low < high < 0.51
    low, high = figures.figures(average, {"m": [mixed]})["m"]["interval"]
    assert low < 0.4 and high > 0.6


def test_the_table_escapes_what_comes_from_data():
    text = figures.table(
        {"negatives, \x1b[31mred": figures.means({"base": np.array([1.0, 2.0]), "policy": np.ones(2)})}
    )
    assert "\x1b" not in text and "\\x1b[31mred" in text
    assert "1.500 (1.000 to 2.000)" in text and "-0.500 (-1.000 to +0.000)" in text
    heads = figures.means({"base": np.zeros(2), "positive": np.ones(2), "negative": np.ones(2)})
    first, second = figures.table({"a": heads, "b": {}}).splitlines()[:2]
    assert first.split()[:2] == ["a", "0.000"] and "positive" in first and second.split()[0] == "negative"
    wide = {"base": {"value": -12.345, "interval": [-15.123, -10.123]}, "policy": {"value": 1.0, "interval": [0, 1]}}
    assert "(-15.123 to -10.123) policy" in figures.table({"log-odds": wide}), "columns do not touch"
    assert "undefined" in figures.table({"a": {"base": {"value": None, "interval": [None, None]}}})
