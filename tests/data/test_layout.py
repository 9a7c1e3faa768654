"""Where the tokens of some rows lie: by hand, and against plain-Python loops."""

from __future__ import annotations

import pytest
import torch

from align.data.layout import (
    ALL,
    AUTO,
    CHEAP,
    NONE,
    PACKED,
    PADDED,
    Tokens,
    arrange,
    least_recompute,
    packed,
    padded,
    size,
)
from align.data.tokenize import TokenizedRow
from tests.data.handmade import PAD, answer, row, some_rows

TWO_ROWS = [row([1, 2, 3], answer(11, 12), answer(21)), row([4], answer(31, 32, 33, 34, role=0))]


def flat(rows: list[TokenizedRow]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(one.prompt_ids, response.ids) for one in rows for response in one.responses]


# padded


def test_padded_by_hand():
    tokens = padded(TWO_ROWS, PAD)
    assert tokens.input_ids.tolist() == [[1, 2, 3, 11, 12], [1, 2, 3, 21, PAD], [4, 31, 32, 33, 34]]
    assert tokens.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert tokens.position_ids is None
    assert tokens.positions.tolist() == [2, 3, 5 + 2, 10, 11, 12, 13]


def test_padding_with_a_token_that_occurs_is_told_apart():
    """Models without a pad token are padded with EOS, which ends every response, too."""
    assert padded([row([1], answer(5, PAD), answer(6, 7, PAD))], PAD).attention_mask.tolist() == [
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]


@pytest.mark.parametrize("seed", range(3))
def test_padded_against_a_loop(seed):
    rows = some_rows(7, seed)
    tokens = padded(rows, PAD)
    width = max(len(prompt_ids) + len(ids) for prompt_ids, ids in flat(rows))
    assert tokens.input_ids.shape == (len(flat(rows)), width)
    positions = []
    for index, (prompt_ids, ids) in enumerate(flat(rows)):
        given = [*prompt_ids, *ids]
        assert tokens.input_ids[index].tolist() == given + [PAD] * (width - len(given))
        assert tokens.attention_mask[index].tolist() == [1] * len(given) + [0] * (width - len(given))
        positions += [index * width + len(prompt_ids) + number - 1 for number in range(len(ids))]
    assert tokens.positions.tolist() == positions


# packed


def test_packed_by_hand():
    """1 2 3 | 11, of a response whose last token is left out | nothing of a single-token response || 4 | 31 32 33."""
    tokens = packed(TWO_ROWS)
    assert tokens.input_ids.tolist() == [[1, 2, 3, 11, 4, 31, 32, 33]]
    assert tokens.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert tokens.attention_mask.tolist() == [[[[0, 3, 0, 0], [3, 4, 0, 3], [4, 5, 4, 4], [5, 8, 4, 5]]]]
    assert tokens.positions.tolist() == [2, 3, 2, 4, 5, 6, 7]


def test_responses_begin_at_the_same_position_behind_their_prompt():
    tokens = packed([row([1, 2], answer(11, 12, 13), answer(21, 22, 23, 24), answer(31, 32))])
    assert tokens.input_ids.tolist() == [[1, 2, 11, 12, 21, 22, 23, 31]]
    assert tokens.position_ids.tolist() == [[0, 1, 2, 3, 2, 3, 4, 2]]
    assert tokens.attention_mask[0, 0].tolist() == [[0, 2, 0, 0], [2, 4, 0, 2], [4, 7, 0, 2], [7, 8, 0, 2]]
    assert tokens.positions.tolist() == [1, 2, 3, 1, 4, 5, 6, 1, 7]


def test_single_token_responses_alone_leave_the_prompt():
    """Both are predicted from its last token."""
    tokens = packed([row([5, 6], answer(7), answer(8))])
    assert tokens.input_ids.tolist() == [[5, 6]] and tokens.position_ids.tolist() == [[0, 1]]
    assert tokens.attention_mask.tolist() == [[[[0, 2, 0, 0]]]] and tokens.positions.tolist() == [1, 1]


@pytest.mark.parametrize("seed", range(4))
def test_packed_segments_spell_every_response(seed):
    """A loop over segments finds each prompt once and each response behind it, at the positions of a text alone."""
    rows = some_rows(7, seed)
    tokens = packed(rows)
    ids, places = tokens.input_ids[0].tolist(), tokens.position_ids[0].tolist()
    segments = iter(tokens.attention_mask[0, 0].tolist())
    end = 0
    for one in rows:
        start, first, prefix, prefix_end = next(segments)
        assert (start, prefix, prefix_end) == (end, end, end) and tuple(ids[start:first]) == one.prompt_ids
        end = first
        for response in one.responses:
            if len(response.ids) > 1:
                segment = next(segments)
                assert (segment[0], *segment[2:]) == (end, start, first)
                assert tuple(ids[end : segment[1]]) == response.ids[:-1]
                assert places[start:first] + places[end : segment[1]] == list(
                    range(len(places[start:first]) + len(response.ids) - 1)
                )
                end = segment[1]
    assert end == len(ids) == len(places) and next(segments, None) is None


@pytest.mark.parametrize("seed", range(4))
def test_packed_positions_are_those_before_each_response_token(seed):
    """The first token is predicted from its prompt's end, each further one from the token before it."""
    rows = some_rows(7, seed)
    tokens = packed(rows)
    before = tokens.input_ids[0, tokens.positions].tolist()
    assert before == [token for prompt, ids in flat(rows) for token in (prompt[-1], *ids[:-1])]


def test_types():
    for tokens in (padded(TWO_ROWS, PAD), packed(TWO_ROWS)):
        assert {tensor.dtype for tensor in tokens if tensor is not None} == {torch.long}


# both


@pytest.mark.parametrize("layout", [PADDED, PACKED])
@pytest.mark.parametrize("count", range(1, 6))
def test_size_is_what_arrange_makes(layout, count):
    rows = some_rows(count, seed=count)
    assert size(rows, layout) == arrange(rows, PAD, layout).input_ids.numel()


@pytest.mark.parametrize("layout", [PADDED, PACKED])
def test_no_rows_take_nothing(layout):
    assert size([], layout) == 0


def test_arrange_is_either():
    def same(one: Tokens, other: Tokens) -> bool:
        return all((a is None and b is None) or torch.equal(a, b) for a, b in zip(one, other, strict=True))

    assert same(arrange(TWO_ROWS, PAD, PADDED), padded(TWO_ROWS, PAD))
    assert same(arrange(TWO_ROWS, PAD, PACKED), packed(TWO_ROWS))


def test_packed_is_never_larger_and_has_the_prompt_once():
    for rows in (some_rows(6, seed) for seed in range(5)):
        assert size(rows, PACKED) < size(rows, PADDED)
    prompt = row(list(range(100)), *(answer(1, 2, 3) for _ in range(8)))
    assert (size([prompt], PADDED), size([prompt], PACKED)) == (8 * 103, 100 + 8 * 2)


@pytest.mark.parametrize(
    "tokens, mode", [(1, NONE), (100, NONE), (101, CHEAP), (175, CHEAP), (176, ALL), (800, ALL), (10_000, ALL)]
)
def test_the_least_is_computed_again_that_the_memory_asks_for(tokens, mode):
    assert least_recompute(AUTO, tokens, 100) == mode
    assert least_recompute(CHEAP, tokens, 100) == CHEAP
