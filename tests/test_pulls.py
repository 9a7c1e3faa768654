"""How hard a loss pulls at each role, against autograd on a bias of the last hidden states; reward calibration."""

from __future__ import annotations

import math

import pytest
import torch

from align.calibration import LARGEST, Calibration
from align.data.collate import collate
from align.objectives import NEGATIVE, POSITIVE, SAMPLE, load
from align.pulls import Pulls
from align.scoring.logprobs import hidden_states, response_logps, response_scores
from align.view import Scorer
from tests import tiny
from tests.commands import TRAIN, TWO_RANKS, assert_same_course, metrics, trained

ROWS = [
    tiny.row("Where?", positives=["Here."], negatives=["I know not.", "Nowhere at all."]),
    tiny.row("And who are you?", positives=["A friend of yours."], negatives=["Nobody."]),
    tiny.row("When?", positives=["Now."], negatives=["Never, or in a hundred years."]),
]
SIZE = 32


def made(calibration: Calibration | None = None, world: int = 1) -> Pulls:
    return Pulls({POSITIVE, NEGATIVE}, SIZE, world, calibration)


def followed(pulls: Pulls, model, rows, objective, world: int = 1) -> None:
    """One micro-batch, forward and backward."""
    batch = collate(rows, 258)
    scorer = Scorer(objective, None, None, 0, pulls=pulls)
    view = scorer.view(batch, *scorer.policy(model, batch, 0), {})
    (objective(view).losses.sum() / 4 * world).backward()


def by_bias(model, rows, of) -> torch.Tensor:
    """The gradient of `of(batch, logps)` in a bias on the last hidden states of the positions `chosen`, by autograd."""
    batch = collate(rows, 258)
    hidden = hidden_states(model, batch).detach()
    bias = torch.zeros(len(hidden), SIZE, requires_grad=True)
    logits = model.get_output_embeddings()(hidden + bias)
    flat = logits.log_softmax(-1).gather(-1, batch.targets[:, None])[:, 0]
    logps = flat.new_zeros(batch.mask.shape).masked_scatter(batch.mask, flat)
    (grad,) = torch.autograd.grad(of(batch, logps), bias)
    return grad, batch.role[:, None].expand(batch.mask.shape)[batch.mask]


@pytest.mark.parametrize("world", [1, 2])
def test_sides_are_the_gradients_of_the_loss(world):
    model, objective, pulls = tiny.llama(), load("simpo")(), made(world=world)
    followed(pulls, model, ROWS, objective, world)

    def loss(batch, logps):
        return objective(Scorer(objective, None, None, 0).view(batch, logps, {}, {})).losses.sum() / 4

    grad, role = by_bias(model, ROWS, loss)
    negative, rest = grad[role == NEGATIVE].sum(0), grad[role != NEGATIVE].sum(0)
    told = pulls.end(lambda sums: sums, torch.device("cpu"))
    assert told["guard/gradient_ratio"] == pytest.approx((negative.norm() / rest.norm()).item(), rel=1e-4)
    cosine = torch.nn.functional.cosine_similarity(negative, -rest, dim=0).item()
    assert told["guard/gradient_cosine"] == pytest.approx(cosine, abs=1e-5) and abs(cosine) < 0.99


def expected_k(model, rows, objective) -> float:
    """log s_l / s_w - log d_w / d_l of one step, by two passes of autograd."""
    norms, pulls = {}, {}
    for role in (POSITIVE, NEGATIVE):

        def mean(batch, logps, role=role):
            return ((logps * batch.mask).sum(-1) / batch.mask.sum(-1))[batch.role == role].mean()

        norms[role] = by_bias(model, rows, mean)[0].sum(0).norm().item()
    batch = collate(rows, 258)
    logps = response_logps(model, batch).detach().requires_grad_()
    objective(Scorer(objective, None, None, 0).view(batch, logps, {}, {})).losses.sum().backward()
    for role in (POSITIVE, NEGATIVE):
        pulls[role] = abs(logps.grad[batch.role == role].sum().item())
    return math.log(norms[NEGATIVE] / norms[POSITIVE]) - math.log(pulls[POSITIVE] / pulls[NEGATIVE])


@pytest.mark.parametrize("name", ["simpo", "cpo", "orpo"])
def test_k_is_the_distance_from_the_middle_of_the_band(name):
    model, objective, pulls = tiny.llama(), load(name)(), made(Calibration(0.9))
    followed(pulls, model, ROWS, objective)
    told = pulls.end(lambda sums: sums, torch.device("cpu"))
    assert told["calibration/k"] == 0, "the first step is not calibrated"
    k = expected_k(model, ROWS, objective)
    assert pulls.calibration.k == pytest.approx(k, abs=1e-3) and abs(k) > 0.02
    assert pulls.calibration.factors() == pytest.approx({POSITIVE: math.exp(k / 2), NEGATIVE: math.exp(-k / 2)}, 1e-3)


def test_factors_scale_gradients_and_nothing_else():
    model, objective, pulls = tiny.llama(), load("simpo")(), made()
    batch = collate(ROWS, 258)
    logps = response_logps(model, batch).detach()
    plain, half = (logps.clone().requires_grad_() for _ in range(2))
    view = Scorer(objective, None, None, 0).view(batch, plain, {}, {})
    assert pulls.scaled(view) is view, "with nothing to scale nothing is touched"
    pulls.negative_weight = 0.5
    scaled = pulls.scaled(Scorer(objective, None, None, 0).view(batch, half, {}, {}))
    losses = objective(view).losses, objective(scaled).losses
    assert torch.equal(*losses)
    for one in losses:
        one.sum().backward()
    negative = batch.role == NEGATIVE
    assert torch.equal(half.grad[~negative], plain.grad[~negative]) and plain.grad[negative].abs().sum() > 0
    torch.testing.assert_close(half.grad[negative], 0.5 * plain.grad[negative])


def test_the_pull_told_leaves_the_factors_out():
    model, objective = tiny.llama(), load("simpo")()
    found = []
    for weight in (1.0, 0.25):
        pulls = made(Calibration(0.9))
        pulls.negative_weight = weight
        followed(pulls, model, ROWS, objective)
        pulls.end(lambda sums: sums, torch.device("cpu"))
        found.append((pulls.largest, pulls.calibration.k))
    assert found[1] == pytest.approx(found[0], rel=1e-4) and found[0][0] > 0


def test_the_cut_of_a_step_and_ranks_change_nothing():
    model, objective = tiny.llama(), load("simpo")()
    whole, cut = made(Calibration(0.9)), made(Calibration(0.9))
    followed(whole, model, ROWS, objective)
    for row in ROWS[:2]:
        followed(cut, model, [row], objective)
    other = made(Calibration(0.9))  # on another rank
    followed(other, model, ROWS[2:], objective)
    parts = [part.flatten() for part in (other.sides, other.directions, other.numbers)]
    told = whole.end(lambda sums: sums, torch.device("cpu"))
    assert cut.end(lambda sums: sums + torch.cat(parts), torch.device("cpu")) == pytest.approx(told, abs=1e-5)
    assert cut.calibration.means == pytest.approx(whole.calibration.means, abs=1e-5)


def test_the_running_means_begin_with_the_first_step_and_are_bounded():
    calibration = Calibration(0.5)
    calibration.update({POSITIVE: 1.0, NEGATIVE: 1.0}, {POSITIVE: 1.0, NEGATIVE: math.e})
    assert calibration.k == pytest.approx(1.0)
    calibration.update({POSITIVE: 1.0, NEGATIVE: 1.0}, {POSITIVE: 1.0, NEGATIVE: math.e**3})
    assert calibration.k == pytest.approx(2.0)
    calibration.update({POSITIVE: -1.0, NEGATIVE: 1.0}, {POSITIVE: 1.0, NEGATIVE: 1.0})
    assert calibration.k == pytest.approx(2.0), "a step that pulls positives down tells nothing"
    calibration.update({POSITIVE: 1.0, NEGATIVE: 1.0}, {POSITIVE: 1.0, NEGATIVE: 1e30})
    assert calibration.k == pytest.approx(LARGEST)


def test_samples_count_as_what_is_held():
    model, pulls = tiny.llama(), Pulls({NEGATIVE, SAMPLE}, SIZE, 1, None)
    rows = [tiny.row("Where?", samples=["Over there."], negatives=["I know not."])]
    batch = collate(rows, 258)
    logps, _ = response_scores(model, batch, {}, pulls.follow)
    (logps[batch.role == NEGATIVE].sum() - 3 * logps[batch.role == SAMPLE].sum()).backward()
    told = pulls.end(lambda sums: sums, torch.device("cpu"))
    assert told.keys() == {"guard/gradient_ratio", "guard/gradient_cosine"}
    sample = next(response for response in rows[0].responses if response.role == SAMPLE)
    assert pulls.largest == pytest.approx(3 * len(sample.ids), rel=1e-5)


RECIPE = """
name: calibrated
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{data}], max_length: 128}}
objective: {{name: dpo, beta: 0.5}}
weights:   {{calibrate: 0.8}}
train:     {{learning_rate: 1.0e-2, max_steps: 5, prompts_per_step: 8, tokens_per_device: 100000, seed: 3,
            precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
guard:     {{action: off}}
output:    unset
"""


@pytest.mark.slow
def test_a_calibrated_run_is_the_same_for_any_cut_and_on_two_ranks(tiny_model, uneven_rows, tmp_path):
    recipe = tmp_path / "calibrated.yaml"
    recipe.write_text(RECIPE.format(model=tiny_model, data=uneven_rows))
    one = trained(recipe, tmp_path / "one", TRAIN)
    assert_same_course(trained(recipe, tmp_path / "two", TWO_RANKS, "train.tokens_per_device=800"), one)
    found = [line["calibration/k"] for line in metrics(one)]
    assert found[0] == 0 and all(abs(k) > 0.01 for k in found[1:])
