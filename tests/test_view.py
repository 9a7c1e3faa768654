"""What an objective sees of a micro-batch: the responses of its roles, scored by whom it asks for."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from align.data.collate import MicroBatch, collate
from align.data.steps import mismatch
from align.objectives import NEGATIVE, POSITIVE, load
from align.reference import FROZEN, References, freeze
from align.reference.ema import RunningMeans
from align.scoring.logprobs import response_logps
from align.view import Scorer
from tests import tiny


@pytest.fixture(scope="module")
def policy():
    return tiny.llama(seed=1)


@pytest.fixture(scope="module")
def references(policy):
    """The frozen reference is a copy with other weights; who wrote the responses is a third model."""
    reference = freeze(tiny.llama(seed=2))
    return References(FROZEN, None, {FROZEN: reference, "writer": freeze(tiny.llama(seed=3))}, behavior="writer")


@pytest.fixture
def rows():
    held = tiny.row("Name a river.", positives=["The Rhine, for one."])
    return [
        tiny.row("Where is it?", positives=["Here."], negatives=["I know not.", "No."]),
        tiny.row("Two and two?", positives=["Four it is."], negatives=["5"]),
        dataclasses.replace(held, retain=True),
    ]


@pytest.fixture
def batch(rows) -> MicroBatch:
    return collate(rows, 258)


def seen(scorer: Scorer, model, batch: MicroBatch):
    return scorer.view(batch, *scorer.policy(model, batch, step=0), scorer.others(model, batch))


def alone(model, rows, role: int) -> list[torch.Tensor]:
    """The log-probs of each response of a role, each forwarded by itself."""
    scored = []
    for row in (row for row in rows if not row.retain):
        for response in (response for response in row.responses if response.role == role):
            single = collate([dataclasses.replace(row, responses=(response,))], 258)
            scored.append(response_logps(model, single)[0])
    return scored


def assert_rows_equal(found: torch.Tensor, expected: list[torch.Tensor]) -> None:
    assert len(found) == len(expected) > 0
    for row, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(wanted)], wanted, rtol=1e-5, atol=1e-5)
        assert (row[len(wanted) :] == 0).all()


def test_retain_rows_are_not_seen(policy, references, batch, rows):
    view = seen(Scorer(load("dpo")(), references, None, 0), policy, batch)
    assert len(view.role) == 5 and len(batch.role) == 6
    assert view.pairs.tolist() == [[0, 1], [0, 2], [3, 4]]
    assert_rows_equal(view.logps[view.role == POSITIVE], alone(policy, rows, POSITIVE))
    assert_rows_equal(view.ref_logps[view.role == NEGATIVE], alone(references.models[FROZEN], rows, NEGATIVE))
    assert view.behavior_logps is None and view.ema_logps is None and view.extras == {}


def test_positives_that_are_only_retained_are_not_seen(policy, references, batch, rows):
    """`retain.positives` forwards them; an objective on negatives knows nothing of them."""
    view = seen(Scorer(load("npo")(), references, None, 0), policy, batch)
    assert view.role.tolist() == [NEGATIVE] * 3 and view.prompt.tolist() == [0, 0, 1] and len(view.pairs) == 0
    assert_rows_equal(view.logps, alone(policy, rows, NEGATIVE))
    assert_rows_equal(view.ref_logps, alone(references.models[FROZEN], rows, NEGATIVE))
    assert batch.is_retained(True).tolist() == [True, False, False, True, False, True]
    assert batch.is_retained(False).tolist() == [False] * 5 + [True]


def test_who_wrote_a_response_is_asked_or_told(policy, references, batch, rows):
    asked = seen(Scorer(load("topr")(), references, None, 0), policy, batch)
    assert_rows_equal(asked.behavior_logps[asked.role == NEGATIVE], alone(references.models["writer"], rows, NEGATIVE))
    told_rows = []
    for row in rows:
        told = [dataclasses.replace(r, behavior_logps=tuple(-0.5 - 0.01 * n for n in r.ids)) for r in row.responses]
        told_rows.append(dataclasses.replace(row, responses=tuple(told)))
    told = seen(Scorer(load("topr")(), None, None, 0), policy, collate(told_rows, 258))
    first = told_rows[0].responses[1]
    assert told.behavior_logps[1, : len(first.ids)].tolist() == pytest.approx(first.behavior_logps)
    assert (told.behavior_logps[~told.mask] == 0).all()


def test_running_means_score_the_same_responses(references, batch, rows):
    policy = tiny.llama(seed=1)
    means = RunningMeans(policy, (0.9, 0.5))
    start = copy.deepcopy(policy)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.1)
    view = seen(Scorer(load("adaptive_dpo")(), references, means, 0), policy, batch)
    assert view.ema_logps.shape == (2, *view.mask.shape)
    for logps in view.ema_logps:
        assert_rows_equal(logps[view.role == NEGATIVE], alone(start, rows, NEGATIVE))
    assert (view.logps - view.ema_logps[0]).abs().max() > 0.01


def test_extras_are_those_of_the_responses_seen(policy, references, batch, rows):
    view = seen(Scorer(load("dpo")(wpo=True), references, None, 0), policy, batch)
    single = collate([dataclasses.replace(rows[1], responses=rows[1].responses[1:])], 258)
    logits = policy(input_ids=single.tokens.input_ids).logits.flatten(0, 1)[single.tokens.positions]
    expected = logits.log_softmax(-1).mul(2).logsumexp(-1)
    torch.testing.assert_close(view.extras["concentration"][4, : len(expected)], expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_seen_of_a_stand_in(policy, references):
    empty = collate([], 258)
    scorer = Scorer(load("dpo")(), references, None, 0)
    assert seen(scorer, policy, empty) is None
    assert scorer.mismatched_log_ratios(policy, empty).shape == (0,)


def test_only_retain_rows_in_a_micro_batch(policy, references, rows):
    assert seen(Scorer(load("dpo")(), references, None, 0), policy, collate(rows[2:], 258)) is None


def test_mismatched_log_ratios_are_those_behind_the_next_prompt(policy, references, rows):
    scorer = Scorer(load("dpo")(), references, None, 0)
    batch = collate(mismatch(rows[:2], max_length=512), 258)
    swapped = [
        dataclasses.replace(rows[0], prompt_ids=rows[1].prompt_ids),
        dataclasses.replace(rows[1], prompt_ids=rows[0].prompt_ids),
    ]
    expected = []
    for row in swapped:
        for response in row.responses:
            single = collate([dataclasses.replace(row, responses=(response,))], 258)
            with torch.no_grad():
                ratio = response_logps(policy, single) - response_logps(references.models[FROZEN], single)
            expected.append(ratio.sum().item())
    assert scorer.mismatched_log_ratios(policy, batch).tolist() == pytest.approx(expected, abs=1e-4)
