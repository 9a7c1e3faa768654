"""A rank's share of a step, and the responses that are scored behind the prompt of another row."""

from __future__ import annotations

import random

import pytest

from align.data.examples import Example
from align.data.layout import PACKED, PADDED, size
from align.data.plan import PlannedFeed, StepPlan
from align.data.steps import Steps, StepShare, mismatch
from align.data.tokenize import TokenizedResponse, TokenizedRow

PAD = 99
LAYOUTS = [PADDED, PACKED]


def row(prompt: list[int], *responses: list[int], retain: bool = False) -> TokenizedRow:
    """A row whose responses have everything that a response can have."""
    full = tuple(
        TokenizedResponse(tuple(ids), -1, 2.0, 0.5, (1,) * len(ids), (-1.0,) * len(ids), (0.5,) * len(ids))
        for ids in responses
    )
    return TokenizedRow(tuple(prompt), full, Example(f"Prompt {prompt}", (), "by hand", "my.jsonl:1"), retain)


def shown(rows: list[TokenizedRow]) -> list[tuple[list[int], list[int]]]:
    """(prompt, response) of every response."""
    return [(list(one.prompt_ids), list(response.ids)) for one in rows for response in one.responses]


A, B, C = [1, 2, 3], [4], [5, 6]


# Behind another prompt


def test_responses_go_behind_the_next_prompt_and_the_last_behind_the_first():
    rows = [row(A, [11]), row(B, [21, 22]), row(C, [31])]
    assert shown(mismatch(rows, 10)) == [(B, [11]), (C, [21, 22]), (A, [31])]


def test_rows_of_the_same_prompt_are_passed_over():
    """A row can be in a step twice, and two rows can ask the same: that is no mismatch."""
    rows = [row(A, [11]), row(A, [12]), row(B, [21]), row(A, [13])]
    assert shown(mismatch(rows, 10)) == [(B, [11]), (B, [12]), (A, [21]), (B, [13])]


@pytest.mark.parametrize("rows", [[], [row(A, [11])], [row(A, [11]), row(A, [12])]], ids=["none", "one", "same"])
def test_one_prompt_has_no_other(rows):
    assert mismatch(rows, 10) == []


def test_every_response_of_a_row_has_a_row_of_its_own():
    """Together, behind a longer prompt, they might not fit a device that each of them fits."""
    rows = [row(A, [11], [12, 13]), row(B, [21])]
    found = mismatch(rows, 10)
    assert shown(found) == [(B, [11]), (B, [12, 13]), (A, [21])]
    assert [len(one.responses) for one in found] == [1, 1, 1]


def test_cut_at_max_length_and_only_there():
    rows = [row(A, [11, 12, 13, 14]), row(B, [21, 22, 23])]
    assert shown(mismatch(rows, 5)) == [(B, [11, 12, 13, 14]), (A, [21, 22])]
    assert shown(mismatch(rows, 4)) == [(B, [11, 12, 13]), (A, [21])]
    assert max(one.lengths()[0] for one in mismatch(rows, 4)) == 4


def test_nothing_comes_along_that_belongs_to_the_response_behind_its_own_prompt():
    found = mismatch([row(A, [11, 12]), row(B, [21])], 4)
    assert [response for one in found for response in one.responses] == [
        TokenizedResponse((11, 12), -1),
        TokenizedResponse((21,), -1),
    ]


def test_the_rows_themselves_stay_as_they_are():
    rows = [row(A, [11, 12, 13]), row(B, [21])]
    mismatch(rows, 4)
    assert rows == [row(A, [11, 12, 13]), row(B, [21])]


# A rank's share


def many_rows(count: int = 23) -> list[TokenizedRow]:
    draw, numbers = random.Random(0), iter(range(100, 10**6))

    def ids(most: int) -> list[int]:
        return [next(numbers) for _ in range(draw.randint(1, most))]

    return [row(ids(6), *(ids(8) for _ in range(draw.randint(1, 3)))) for _ in range(count)]


def steps_of(
    rows: list[TokenizedRow], *, rank: int = 0, world: int = 1, wants_mismatched: bool = True, retain=None, **more
) -> Steps:
    plan = StepPlan([1.0] * len(rows), prompts_per_step=5, epochs=2, max_steps=None, seed=3)
    settings = {
        "max_length": 14,
        "tokens_per_device": 45,
        "pad_id": PAD,
        "layout": "padded",
        "recompute": "auto",
    } | more
    feed = PlannedFeed(rows, plan)
    return Steps(
        feed,
        None,
        retain=retain,
        wants_mismatched=wants_mismatched,
        splits_roles=False,
        rank=rank,
        world=world,
        **settings,
    )


def told(share: StepShare, kind: str) -> list[tuple[list[int], list[int]]]:
    return [pair for batch in getattr(share, kind) for pair in shown(list(batch.rows))]


def shares(step: int, world: int, **more) -> list[StepShare]:
    return [steps_of(many_rows(), rank=rank, world=world, **more)[step] for rank in range(world)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["batches", "mismatched"])
@pytest.mark.parametrize("step", [0, 3, 8])
def test_a_step_is_the_same_on_any_number_of_ranks_and_in_either_layout(step, kind, layout):
    alone = sorted(told(*shares(step, 1), kind))
    assert alone
    for world in (1, 2, 3, 8):
        together = [pair for share in shares(step, world, layout=layout) for pair in told(share, kind)]
        assert sorted(together) == alone, world


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", ["batches", "mismatched"])
@pytest.mark.parametrize("tokens", [20, 45, 10**6])
def test_all_ranks_have_equally_many_micro_batches(kind, tokens, layout):
    """They call the model in step, mismatched ones included: gradients and ZeRO-3 wait for each other."""
    for world in (1, 2, 3, 8):
        for step in range(len(steps_of(many_rows()))):
            of_ranks = shares(step, world, tokens_per_device=tokens, layout=layout)
            counts = {len(getattr(share, kind)) for share in of_ranks}
            assert len(counts) == 1 and counts != {0}, (world, step)


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_micro_batches_have_the_layout_and_its_bound(layout, world):
    """Each row fits: 45 tokens are more than the largest takes, padded or packed."""
    assert max(size([one], layout) for one in many_rows()) <= 45
    for step in range(len(steps_of(many_rows()))):
        for share in shares(step, world, layout=layout):
            for batch in (*share.batches, *share.mismatched):
                assert batch.layout == layout and (batch.tokens.position_ids is None) is (layout == PADDED)
                if batch.rows:
                    assert batch.tokens.input_ids.numel() == size(batch.rows, layout) <= 45


def test_packed_steps_take_fewer_micro_batches():
    """As many tokens a device hold more rows without padding and with every prompt once."""
    padded, packed = (
        sum(len(steps_of(many_rows(), layout=layout)[step].batches) for step in range(10)) for layout in LAYOUTS
    )
    assert packed < padded


def test_the_last_step_may_hold_one_prompt_and_has_a_stand_in_for_mismatched():
    """46 rows in steps of five: the tenth holds one."""
    steps = steps_of(many_rows())
    assert len(steps) == 10
    share = steps[9]
    assert [batch.rows for batch in share.mismatched] == [()] and len(share.mismatched[0].targets) == 1
    assert told(share, "batches")


def test_mismatched_responses_only_where_they_are_wanted():
    share = steps_of(many_rows(), wants_mismatched=False)[0]
    assert share.mismatched == [] and share.batches


def test_mismatched_keep_the_bound_of_a_device():
    """Row A alone is 3 x 5 = 15 tokens; its responses behind B's longer prompt would be 3 x 14."""
    long = list(range(40, 50))
    steps = steps_of([row([1], [2, 3, 4, 5], [2, 3, 4, 6], [2, 3, 4, 7]), row(long, [8])], tokens_per_device=15)
    assert max(batch.tokens.input_ids.numel() for batch in steps[0].mismatched) == 14
    assert len(told(steps[0], "mismatched")) == 8  # both epochs are in the step: each row twice


@pytest.mark.parametrize("layout", LAYOUTS)
def test_retain_rows_are_beside_the_others_and_not_among_the_mismatched(layout):
    held = [row([71, 72], [73], retain=True), row([81], [82, 83], retain=True)]
    plan = StepPlan([1.0, 1.0], prompts_per_step=1, epochs=1, max_steps=10, seed=0)
    with_held, without = (
        steps_of(many_rows(), retain=retain, tokens_per_device=10**6, layout=layout)[2]
        for retain in (PlannedFeed(held, plan), None)
    )
    assert [batch.num_retain for batch in with_held.batches] == [1]
    extra = [pair for pair in told(with_held, "batches") if pair not in told(without, "batches")]
    assert extra == shown([held[plan.rows(2)[0]]])
    assert told(with_held, "mismatched") == told(without, "mismatched")


class _Sampler:
    """Has samples for every other row."""

    def __init__(self, rows: list[TokenizedRow]):
        self.rows = rows

    def with_samples(self, row: TokenizedRow) -> TokenizedRow | None:
        return row if self.rows.index(row) % 2 else None


def test_rows_without_a_usable_sample_are_left_out():
    rows = many_rows()
    steps = steps_of(rows)
    steps.sampler = _Sampler(rows)
    for step in range(len(steps)):
        kept = [rows[index] for index in steps.feed.plan.rows(step) if index % 2]
        assert sorted(told(steps[step], "batches")) == sorted(shown(kept))
        assert len(told(steps[step], "mismatched")) == (len(shown(kept)) if len(kept) > 1 else 0)


def test_transformers_may_look_into_a_share():
    """Trainer asks whether "labels" is in its inputs."""
    share = steps_of(many_rows())[1]
    assert share.number == 1 and "labels" not in share


def test_ranks_compute_the_same_again_side_by_side():
    """Under ZeRO-3 a rank that computed layers again, and gathered their weights, would wait for the others."""
    rows = [row([index, 1], [7] * (4 + 9 * index)) for index in range(5)]
    shares = [steps_of(rows, rank=rank, world=2, wants_mismatched=False, tokens_per_device=20)[0] for rank in (0, 1)]
    modes = [[batch.recompute for batch in share.batches] for share in shares]
    assert modes[0] == modes[1]
    assert len(set(modes[0])) > 1
