"""Tokens, micro-batches and steps of a run, counted by hand."""

from __future__ import annotations

import pytest

from align.data.layout import ALL, AUTO, CHEAP, NONE, PACKED, PADDED
from align.data.plan import PlannedFeed, StepPlan
from align.data.steps import Steps
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.negatives.options import Sampling
from align.objectives import NEGATIVE, POSITIVE
from align.planning import volume
from align.planning.volume import AssumedSamples


def row(prompt: int, *responses: tuple[int, int]) -> TokenizedRow:
    """Of so many tokens; responses as (role, tokens)."""
    return TokenizedRow((1,) * prompt, tuple(TokenizedResponse((2,) * n, role) for role, n in responses), None)


def steps_of(rows: list[TokenizedRow], **options) -> Steps:
    per_step = options.pop("prompts_per_step", len(rows))
    plan = StepPlan([1.0] * len(rows), prompts_per_step=per_step, epochs=1, max_steps=None, seed=0)
    given = {
        "retain": None, "wants_mismatched": False, "splits_roles": False, "rank": 0, "world": 1, "max_length": 512,
        "tokens_per_device": 1000, "pad_id": 0, "layout": PACKED, "recompute": AUTO,
    }  # fmt: skip
    return Steps(PlannedFeed(rows, plan), None, **given | options)


PAIRS = row(10, (POSITIVE, 5), (NEGATIVE, 7), (NEGATIVE, 3))
SINGLE = row(4, (NEGATIVE, 6))


def test_a_step_by_hand():
    found = volume.count(steps_of([PAIRS, SINGLE]))
    once = (10 + 4 + 6 + 2) + (4 + 5)  # a prompt once, each response without its last token
    assert (found.steps, found.looked_at, found.a_step("micro-batches")) == (1, 1, 1)
    assert found.a_step("prompts") == 2 and found.a_step("responses") == 4
    assert found.a_step("tokens") == found.a_step("unique tokens") == once
    assert found.a_step("response tokens") == 5 + 7 + 3 + 6
    assert found.a_step("tokens with a prompt for each response") == (15 + 17 + 13) + 10
    assert found.a_step("tokens padded") == 4 * 17
    assert found.a_step("tokens in pairs") == (15 + 17) + (15 + 13)
    assert found.tokens_by_recompute == {NONE: once}


def test_padded_tokens_are_counted_as_they_lie():
    found = volume.count(steps_of([PAIRS, SINGLE], layout=PADDED))
    assert found.a_step("tokens") == 4 * 17
    assert found.a_step("unique tokens") == 31


def test_the_heaviest_of_each_kind_of_recomputation():
    found = volume.count(steps_of([row(n, (POSITIVE, 1)) for n in (90, 100, 150, 170, 500)], tokens_per_device=100))
    assert {one.recompute: one.tokens for one in found.heaviest()} == {NONE: 100, CHEAP: 170, ALL: 500}
    assert found.most_micro_batches == 5


def test_ranks_share_the_micro_batches():
    rows = [row(50, (POSITIVE, 1)) for _ in range(8)]
    one, two = (volume.count(steps_of(rows, world=world, tokens_per_device=100)) for world in (1, 2))
    assert one.a_step("micro-batches") == 2 * two.a_step("micro-batches") == 4
    assert one.a_step("tokens") == two.a_step("tokens") == 400


def test_of_a_long_run_some_steps_are_looked_at():
    rows = [row(10 + index % 7, (NEGATIVE, 5)) for index in range(1000)]
    found = volume.count(steps_of(rows, prompts_per_step=4))
    assert (found.steps, found.looked_at) == (250, volume.LOOKED_AT)
    mean = sum(len(one.prompt_ids) + 4 for one in rows) / len(rows)
    assert found.a_step("tokens") == pytest.approx(4 * mean, rel=0.05)


def test_samples_are_taken_to_be_as_long_as_they_may_be():
    found = AssumedSamples(Sampling(k=3, max_new_tokens=64), max_length=50).with_samples(SINGLE)
    assert [len(one.ids) for one in found.responses] == [6, 46, 46, 46]
    found = AssumedSamples(Sampling(k=1, max_new_tokens=8), max_length=50).with_samples(SINGLE)
    assert [len(one.ids) for one in found.responses] == [6, 8]
