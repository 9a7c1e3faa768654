"""DPO, cDPO, f-DPO, LD-DPO and WPO against numbers worked out by hand and a plain loop (TRL: test_trl_parity.py)."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from align.objectives import NEGATIVE, POSITIVE, load
from tests import tiny
from tests.objectives.loops import assert_loop, gradient, uneven_pairs

DPO = load("dpo")


def formula(beta: float, smoothing: float = 0.0, score=lambda h: (h, 1.0)):
    """-log sigmoid of the margin, smoothed, and its slopes. `score` makes of a log-ratio f' and its slope."""

    def pair(positive: float, negative: float) -> tuple[float, float, float]:
        (up, up_slope), (down, down_slope) = score(positive), score(negative)
        z = beta * (up - down)
        slope = beta * (smoothing - 1 / (1 + math.exp(z)))
        loss = (1 - smoothing) * math.log(1 + math.exp(-z)) + smoothing * math.log(1 + math.exp(z))
        return loss, slope * up_slope, -slope * down_slope

    return pair


# log u -> f'(u), and its derivative along log u
SCORES = {
    "forward_kl": lambda h: (1 - math.exp(-h), math.exp(-h)),
    "js_divergence": lambda h: (math.log(2 * math.exp(h) / (1 + math.exp(h))), 1 / (1 + math.exp(h))),
    "alpha_divergence": lambda h: ((math.exp(-0.7 * h) - 1) / -0.7, math.exp(-0.7 * h)),
}


def test_values_by_hand():
    """Log-ratios 0.5 + 0.7 = 1.2 and -0.8, beta 0.5: margin 0.5 * 2.0 = 1, loss log(1 + e^-1) = 0.3132617.

    Gradient: sigmoid(-1) = 0.2689414 times beta, 0.1344707, down on the positive's tokens, up on the negative's.
    A second pair the wrong way round: margin 0.5 * (-1 - 1) = -1, loss log(1 + e) = 1.3132617.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])], [(NEGATIVE, [1.0]), (POSITIVE, [-1.0])])
    result = DPO(beta=0.5)(batch)
    assert result.losses.tolist() == pytest.approx([0.3132617, 1.3132617], abs=1e-6)
    assert result.metrics["margin"].tolist() == pytest.approx([1.0, -1.0], abs=1e-6)
    assert result.metrics["accuracy"].tolist() == [1.0, 0.0]
    found = gradient(result.losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1344707, -0.1344707], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1344707, 0.0], abs=1e-6)


def test_label_smoothing_by_hand():
    """cDPO, e = 0.2, margin 1: 0.8 * 0.3132617 + 0.2 * 1.3132617 = 0.2506094 + 0.2626523 = 0.5132617.

    Gradient to the margin: e - sigmoid(-1) = 0.2 - 0.2689414 = -0.0689414; times beta 0.5: -0.0344707 a token.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    losses = DPO(beta=0.5, label_smoothing=0.2)(batch).losses
    assert losses.tolist() == pytest.approx([0.5132617], abs=1e-6)
    assert gradient(losses, batch)[:, 0].tolist() == pytest.approx([-0.0344707, 0.0344707], abs=1e-6)


def test_label_smoothing_stops_at_its_own_confidence():
    """cDPO is least where sigmoid(margin) = 1 - e: for e = 0.2 at margin log(0.8 / 0.2) = 1.3862944."""
    batch = tiny.batch([(POSITIVE, [math.log(4)]), (NEGATIVE, [0.0])])
    losses = DPO(beta=1.0, label_smoothing=0.2)(batch).losses
    assert gradient(losses, batch).abs().max().item() == pytest.approx(0, abs=1e-6)
    assert losses.item() == pytest.approx(-0.8 * math.log(0.8) - 0.2 * math.log(0.2), abs=1e-6)


def test_all_pairs_of_a_prompt_count():
    """Two positives (0.0, 1.0) and two negatives (0.0, -2.0), beta 1: margins 0, 2, 1, 3 in the order of `pairs`.

    Losses log(1 + e^-m): 0.6931472, 0.1269280, 0.3132617, 0.0485874.
    """
    batch = tiny.batch([(POSITIVE, [0.0]), (POSITIVE, [1.0]), (NEGATIVE, [0.0]), (NEGATIVE, [-2.0])])
    assert batch.pairs.tolist() == [[0, 2], [0, 3], [1, 2], [1, 3]]
    losses = DPO(beta=1.0)(batch).losses
    assert losses.tolist() == pytest.approx([0.6931472, 0.1269280, 0.3132617, 0.0485874], abs=1e-6)


@pytest.mark.parametrize("beta, smoothing", [(0.1, 0.0), (1.2, 0.0), (0.6, 0.1), (0.3, 0.49)])
def test_equals_a_plain_loop(beta, smoothing):
    assert_loop(DPO(beta=beta, label_smoothing=smoothing), formula(beta, smoothing))


def test_length_normalize_takes_means():
    """Means 1.2 / 2 = 0.6 and -0.8, beta 0.5: margin 0.7, loss log(1 + e^-0.7) = 0.4031860.

    Gradient: sigmoid(-0.7) = 0.3318122 times beta, 0.1659061; half of it on each of the positive's two tokens.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8])])
    losses = DPO(beta=0.5, length_normalize=True)(batch).losses
    assert losses.tolist() == pytest.approx([0.4031860], abs=1e-6)
    found = gradient(losses, batch)
    assert found[0].tolist() == pytest.approx([-0.0829531, -0.0829531], abs=1e-6)
    assert found[1].tolist() == pytest.approx([0.1659061, 0.0], abs=1e-6)
    assert_loop(DPO(beta=0.8, length_normalize=True), formula(0.8), per_token=True)


@pytest.mark.parametrize(
    "divergence, margin, loss, slopes",
    [
        ("forward_kl", 1.5, 0.2014133, (0.5, 2)),  # (1 - 1/2) - (1 - 2); 1/u
        ("js_divergence", math.log(2), math.log(1.5), (1 / 3, 2 / 3)),  # log(4/3) - log(2/3); 1 / (1 + u)
        ("alpha_divergence", 2**0.5, 0.2176217, (0.5**0.5, 2**0.5)),  # -2 (0.5^0.5 - 2^0.5), coefficient 0.5; u^-0.5
    ],
)
def test_f_divergences_by_hand(divergence, margin, loss, slopes):
    """u = 2 and u = 1/2, beta 1. The slope along log u is u f''(u) times sigmoid(-margin)."""
    batch = tiny.batch([(POSITIVE, [math.log(2)]), (NEGATIVE, [-math.log(2)])])
    result = DPO(beta=1.0, f_divergence=divergence)(batch)
    assert result.metrics["margin"].tolist() == pytest.approx([margin], abs=1e-6)
    assert result.losses.tolist() == pytest.approx([loss], abs=1e-6)
    share = 1 / (1 + math.exp(margin))
    assert gradient(result.losses, batch)[:, 0].tolist() == pytest.approx(
        [-share * slopes[0], share * slopes[1]], abs=1e-6
    )


@pytest.mark.parametrize("divergence", SCORES)
def test_f_divergences_equal_a_plain_loop(divergence):
    objective = DPO(beta=0.4, label_smoothing=0.1, f_divergence=divergence, alpha_divergence_coef=0.3)
    assert_loop(objective, formula(0.4, 0.1, SCORES[divergence]), spread=0.7)


@pytest.mark.parametrize("coefficient, same", [(0.0, "forward_kl"), (1.0, "reverse_kl"), (1 - 1e-9, "reverse_kl")])
def test_alpha_divergence_ends_at_the_two_kls(coefficient, same):
    batch = uneven_pairs()
    alpha = DPO(f_divergence="alpha_divergence", alpha_divergence_coef=coefficient)(batch).losses
    torch.testing.assert_close(alpha, DPO(f_divergence=same)(batch).losses)


@pytest.mark.parametrize("divergence", SCORES)
@pytest.mark.parametrize("far", [1e4, -1e4, 85.0, -85.0])
def test_f_divergences_are_finite_far_from_the_reference(divergence, far):
    batch = tiny.batch([(POSITIVE, [far] * 3), (NEGATIVE, [-far] * 2), (NEGATIVE, [far])])
    losses = DPO(f_divergence=divergence)(batch).losses
    assert losses.isfinite().all()
    assert gradient(losses, batch).isfinite().all()


def test_ld_alpha_by_hand():
    """LD-DPO, 0.25 for what is behind the shorter response; beta 1. The negative has another sum in each of two pairs.

    Positive (1, 2, 4) and negative (-1, -0.5): 2 tokens shared; 1 + 2 + 0.25 * 4 = 4 and -1.5, margin 5.5.
    Positive (0.5) and the negative: 1 shared; 0.5 and -1 - 0.25 * 0.5 = -1.125, margin 1.625.
    Losses log(1 + e^-5.5) = 0.0040785 and log(1 + e^-1.625) = 0.1797445; weights 0.0040701 and 0.1645161.
    """
    batch = tiny.batch([(POSITIVE, [1, 2, 4]), (NEGATIVE, [-1, -0.5]), (POSITIVE, [0.5])])
    assert batch.pairs.tolist() == [[0, 1], [2, 1]]
    result = DPO(beta=1.0, ld_alpha=0.25)(batch)
    assert result.metrics["margin"].tolist() == pytest.approx([5.5, 1.625], abs=1e-6)
    assert result.losses.tolist() == pytest.approx([0.0040785, 0.1797445], abs=1e-6)
    one, other = 0.0040701, 0.1645161
    expected = [[-one, -one, -one / 4], [one + other, one + other / 4, 0], [-other, 0, 0]]
    for found, wanted in zip(gradient(result.losses, batch).tolist(), expected, strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)


def test_ld_alpha_keeps_the_weights_of_tokens():
    """The pair as above, tokens weighed 2, 1, 3 and 1, 4: 2 + 2 + 0.25 * 12 = 7 against -1 - 2 = -3."""
    batch = tiny.batch([(POSITIVE, [1, 2, 4]), (NEGATIVE, [-1, -0.5])])
    batch = dataclasses.replace(batch, token_weight=torch.tensor([[2.0, 1, 3], [1, 4, 9]]))
    assert DPO(beta=1.0, ld_alpha=0.25)(batch).metrics["margin"].tolist() == pytest.approx([10.0], abs=1e-5)


@pytest.mark.parametrize("ld_alpha", [0.0, 0.5])
def test_ld_alpha_concerns_unequal_lengths_only(ld_alpha):
    equal = tiny.batch([(POSITIVE, [0.3, 1.0]), (NEGATIVE, [-1.0, 0.4])])
    torch.testing.assert_close(DPO(ld_alpha=ld_alpha)(equal).losses, DPO()(equal).losses)
    longer = tiny.batch([(POSITIVE, [0.3, 1.0, 5.0]), (NEGATIVE, [-1.0, 0.4])])
    assert not torch.allclose(DPO(ld_alpha=ld_alpha)(longer).losses, DPO()(longer).losses)
    if ld_alpha == 0:
        torch.testing.assert_close(DPO(ld_alpha=0.0)(longer).losses, DPO()(equal).losses)


def test_wpo_by_hand():
    """p / sum_v p_v^2 is 1/2 and 1/8 on the positive's tokens, 2 on the negative's: means (in logs) 1/4 and 2.

    So the pair weighs 1/2, without gradient: half the loss of 0.3132617 and half its gradient of 0.1344707 a token.
    The other negative, with a ratio of 12, makes a pair weigh 3: nothing is cut off at 1.
    """
    batch = tiny.batch([(POSITIVE, [0.5, 0.7]), (NEGATIVE, [-0.8]), (NEGATIVE, [-0.8])])
    aligned = torch.tensor([[1 / 2, 1 / 8], [2, 1], [12, 1]]).log()  # the last two of the second column are padding
    batch = dataclasses.replace(batch, extras={"concentration": batch.logps.detach() - aligned})
    objective = DPO(beta=0.5, wpo=True)
    assert objective.extras == ("concentration",) and not DPO().extras
    assert objective.has_stop_gradient and not DPO().has_stop_gradient
    losses = objective(batch).losses
    assert losses.tolist() == pytest.approx([0.3132617 / 2, 0.3132617 * 3], abs=1e-6)
    found = gradient(losses, batch)
    assert found[0].tolist() == pytest.approx([-0.1344707 * 3.5] * 2, abs=1e-6)
    assert found[1:, 0].tolist() == pytest.approx([0.1344707 / 2, 0.1344707 * 3], abs=1e-6)
