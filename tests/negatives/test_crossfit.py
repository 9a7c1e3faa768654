"""Cross-fitted margins: no pair has a say in its own, planted flips are found, and equal pairs are told."""

from __future__ import annotations

import numpy as np
import pytest

from align.negatives import crossfit

OPTIONS = {"folds": 4, "copies": 3, "seed": 0}


def separable(count: int = 200, width: int = 30, noise: float = 1.0) -> np.ndarray:
    """(U, F) differences that one direction tells apart."""
    draw = np.random.default_rng(0)
    return draw.normal(0, noise, (count, width)) + np.eye(width)[0] * 2


def names(count: int) -> list[str]:
    return [f"p{index // 2}" for index in range(count)]  # two pairs a prompt


def test_no_prompt_has_a_say_in_its_own_margins():
    """The probe of a fold is linear in what it is asked and knows nothing of it: minus the pair, minus its margin."""
    given = separable()
    before = crossfit.margins(given, names(200), **OPTIONS).margins
    changed = given.copy()
    changed[[6, 7]] *= -1
    after = crossfit.margins(changed, names(200), **OPTIONS).margins
    assert after[[6, 7]] == pytest.approx(-before[[6, 7]], abs=1e-12)
    assert not np.allclose(after[8:], before[8:]), "others learn from it"


def test_the_probe_is_ridge_regression_by_the_normal_equations():
    draw = np.random.default_rng(1)
    learned, asked = draw.normal(0.5, 2, (40, 6)), draw.normal(0, 1, (5, 6))
    scale = np.sqrt((learned**2).mean(0))
    rows = learned / scale
    best = None
    for strength in crossfit._STRENGTHS * (np.linalg.svd(rows)[1] ** 2).mean():
        errors = []
        for left_out in range(40):  # leave-one-out by really leaving one out
            rest = np.delete(rows, left_out, 0)
            weights = np.linalg.solve(rest.T @ rest + strength * np.eye(6), rest.sum(0))
            errors.append((1 - rows[left_out] @ weights) ** 2)
        best = min(best or (np.inf, 0), (np.mean(errors), strength))
    weights = np.linalg.solve(rows.T @ rows + best[1] * np.eye(6), rows.sum(0))
    assert crossfit._probe(learned, asked) == pytest.approx(asked / scale @ weights, abs=1e-9)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3])
def test_planted_flips_are_found(share):
    given, flipped = separable(400), np.random.default_rng(2).random(400) < share
    given[flipped] *= -1
    found = crossfit.margins(given, [str(n) for n in range(400)], **OPTIONS)
    called = found.doubts >= 0.6
    assert (called & flipped).sum() / flipped.sum() > 0.65
    assert (called & flipped).sum() / called.sum() > 0.7
    assert set(np.unique(found.doubts * 3).round(9)) <= {0, 1, 2, 3}


def test_the_threshold_by_hand():
    """Margins 1 and -1 in ratio 3 to 1: the scale that is likeliest gives 1 the probability 3/4, on average 5/8."""
    marks, threshold = crossfit._called_wrong(np.array([1.0] * 30 + [-1.0] * 10))
    assert threshold == pytest.approx(0.75 * 0.75 + 0.25 * 0.25, abs=1e-4)
    assert marks.tolist() == [False] * 30 + [True] * 10
    marks, _ = crossfit._called_wrong(np.array([1.0] * 30 + [-0.2] * 10))
    assert not marks.any(), "less sure of the contrary than of labels on average"


def test_none_is_called_wrong_where_the_features_tell_all():
    assert not crossfit.margins(separable(noise=0.4), names(200), **OPTIONS).doubts.any()


def test_the_seed_decides():
    one, same, other = (
        crossfit.margins(separable(), names(200), folds=4, copies=2, seed=seed).margins for seed in (0, 0, 1)
    )
    assert (one == same).all() and not np.allclose(one, other)


def test_margins_that_know_nothing_call_no_label_wrong():
    """Two thirds are of the wrong sign: no scale above 0 makes the labels likelier than chance."""
    marks, threshold = crossfit._called_wrong(np.array([1.0] * 10 + [-1.0] * 20))
    assert not marks.any() and threshold == 0.5


def test_margins_against_all_labels_are_told():
    pairs = np.repeat(np.eye(40), 2, axis=0) * np.tile([1.0, -1.0], 40)[:, None]  # each prompt contradicts itself
    with pytest.raises(ValueError, match="no more labels than chance"):
        crossfit.margins(pairs, [f"p{index}" for index in range(80)], **OPTIONS)


def test_equal_pairs_are_told():
    with pytest.raises(ValueError, match="all pairs are equal"):
        crossfit.margins(np.ones((30, 4)), names(30), **OPTIONS)
