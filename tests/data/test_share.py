"""Rows to ranks and micro-batches, checked by counting, in both layouts."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest

from align.data.layout import PACKED, PADDED, size
from align.data.share import share_out
from align.data.tokenize import TokenizedRow
from tests.data.handmade import answer, row, some_rows

LAYOUTS = [PADDED, PACKED]
LARGE = 10**6


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("tokens", [1, 40, 200, LARGE])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 24])
def test_every_row_goes_whole_to_one_place_and_ranks_keep_step(layout, world, tokens, count):
    rows = some_rows(count)
    shares = share_out(rows, world=world, tokens_per_device=tokens, layout=layout)
    dealt = [one for share in shares for group in share for one in group]
    assert len(shares) == world
    assert len({len(share) for share in shares}) == 1 and shares[0]
    assert Counter(one.example.prompt for one in dealt) == Counter(one.example.prompt for one in rows)
    assert all(any(one is given for given in rows) for one in dealt)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("extra", [1.0, 1.5, 4.0])
def test_tokens_per_device_is_kept_where_each_row_fits(layout, world, seed, extra):
    rows = some_rows(40, seed, longest=30)
    tokens = int(extra * max(size([one], layout) for one in rows))
    shares = share_out(rows, world=world, tokens_per_device=tokens, layout=layout)
    assert max(size(group, layout) for share in shares for group in share) <= tokens


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_larger_than_a_device_lies_alone(layout):
    large = row(list(range(50)), *(answer(*range(50)) for _ in range(4)), name="large")
    shares = share_out([*some_rows(6), large], world=1, tokens_per_device=100, layout=layout)
    assert [large] in shares[0]
    assert all(size(group, layout) <= 100 for group in shares[0] if group != [large])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("world", "each"), [(1, 5), (2, 3), (5, 1)])
def test_rows_larger_than_a_device_make_no_empty_micro_batches(layout, world, each):
    shares = share_out(some_rows(5), world=world, tokens_per_device=1, layout=layout)
    assert [len(share) for share in shares] == [each] * world
    assert sorted(len(group) for share in shares for group in share) == [0] * (world * each - 5) + [1] * 5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_without_a_row_get_empty_micro_batches(layout):
    first, second = rows = some_rows(2)
    shares = share_out(rows, world=4, tokens_per_device=LARGE, layout=layout)
    assert [len(share) for share in shares] == [1, 1, 1, 1]
    assert sorted(len(share[0]) for share in shares) == [0, 0, 1, 1]
    assert {id(one) for share in shares for one in share[0]} == {id(first), id(second)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_rows_are_one_empty_micro_batch_a_rank(layout):
    assert share_out([], world=3, tokens_per_device=16, layout=layout) == [[[]], [[]], [[]]]


def equal_rows(count: int, layout: str) -> list[TokenizedRow]:
    """Rows of one response that take four tokens each."""
    ids = (3, 4) if layout == PADDED else (3, 4, 5)
    rows = [row([1, 2], answer(*ids), name=f"Prompt {index}") for index in range(count)]
    assert size(rows, layout) == 4 * count
    return rows


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("tokens, each", [(LARGE, 1), (33, 1), (20, 2), (9, 4), (5, 8)])
def test_as_few_micro_batches_as_fit(layout, world, tokens, each):
    """Eight rows of four tokens a rank: 32 tokens."""
    shares = share_out(equal_rows(8 * world, layout), world=world, tokens_per_device=tokens, layout=layout)
    assert [len(share) for share in shares] == [each] * world


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("tokens, each", [(32, 1), (16, 2), (8, 4), (4, 8)])
def test_devices_that_are_just_full_need_no_further_micro_batch(layout, tokens, each):
    (share,) = share_out(equal_rows(8, layout), world=1, tokens_per_device=tokens, layout=layout)
    assert len(share) == each


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_get_about_the_same_work(layout):
    rows = [one for seed in range(8) for one in some_rows(40, seed)]
    shares = share_out(rows, world=4, tokens_per_device=400, layout=layout)
    work = [sum(sum(one.lengths()) for group in share for one in group) for share in shares]
    assert max(work) < 1.2 * min(work)


# padded: rows of like length


@pytest.mark.parametrize("world", [1, 3])
def test_padded_rows_of_like_length_lie_together_and_on_all_ranks_at_once(world):
    """Else micro-batches would be padded to the longest row of the step, and ranks would wait for each other."""
    shares = share_out(some_rows(60, longest=40), world=world, tokens_per_device=300)
    lengths = [max(one.lengths()) for together in zip(*shares, strict=True) for group in together for one in group]
    assert len(shares[0]) > 3 and lengths == sorted(lengths, reverse=True)


def test_the_order_of_padded_rows_does_not_decide_their_company():
    rows = some_rows(12)
    shuffled = random.Random(1).sample(rows, len(rows))
    lengths = [
        [[max(one.lengths()) for one in group] for group in share_out(some, world=1, tokens_per_device=150)[0]]
        for some in (rows, shuffled)
    ]
    assert [max(group) for group in lengths[0] if group] == [max(group) for group in lengths[1] if group]


# packed: full bins


def sizes(shares: list[list[list[TokenizedRow]]]) -> list[list[int]]:
    return [[size(group, PACKED) for group in share] for share in shares]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("bins", [4, 9])
def test_packed_bins_are_nearly_full(seed, world, bins):
    """Eighty small rows to so many bins a rank: one more than their tokens need at most, for what is left over."""
    rows = some_rows(80 * world, seed)
    tokens = math.ceil(size(rows, PACKED) / (world * bins))
    shares = share_out(rows, world=world, tokens_per_device=tokens, layout=PACKED)
    assert bins <= len(shares[0]) <= bins + 1


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("world", [1, 2, 4])
def test_packed_micro_batches_take_about_as_many_tokens(seed, world):
    """No rank waits long for another, in any of the micro-batches: they differ by less than the largest row."""
    rows = some_rows(60 * world, seed)
    tokens = math.ceil(size(rows, PACKED) / world / 3.5)
    shares = sizes(share_out(rows, world=world, tokens_per_device=tokens, layout=PACKED))
    largest = max(size([one], PACKED) for one in rows)
    every = [found for share in shares for found in share]
    assert len(shares[0]) == 4 and max(every) - min(every) <= largest


def test_packed_counts_a_prompt_once():
    """A prompt of 100 tokens with eight responses of three takes 116 tokens here and 824 there."""
    rows = [row(list(range(100)), *(answer(1, 2, 3) for _ in range(8))) for _ in range(4)]
    assert [len(share_out(rows, world=1, tokens_per_device=900, layout=layout)[0]) for layout in LAYOUTS] == [4, 1]
    assert len(share_out(rows, world=1, tokens_per_device=232, layout=PACKED)[0]) == 2


@pytest.mark.parametrize("world", [1, 3])
def test_the_order_of_packed_rows_does_not_decide_how_full_bins_are(world):
    rows = some_rows(30)
    shuffled = random.Random(1).sample(rows, len(rows))
    first, second = (
        sizes(share_out(some, world=world, tokens_per_device=90, layout=PACKED)) for some in (rows, shuffled)
    )
    assert first == second and len(first[0]) > 1
