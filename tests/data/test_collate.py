"""Rows to the tensors of a micro-batch, and parts of it, checked by hand and against plain-Python loops."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from align.data.collate import MicroBatch, collate
from align.data.layout import PACKED, PADDED, Tokens
from align.data.tokenize import TokenizedResponse, TokenizedRow
from tests.data.handmade import PAD, answer, held, row, some_rows

LAYOUTS = [PADDED, PACKED]

TWO_ROWS = [
    row([1, 2, 3], answer(11, 12, role=1, weight=2.0, reward=0.5), answer(21, role=-1, weight=0.5, reward=-1.0)),
    row([4], answer(31, 32, 33, 34, role=0, reward=0.0)),
]


# One micro-batch, by hand


def test_tensors_by_hand():
    batch = collate(TWO_ROWS, PAD)
    assert batch.tokens.input_ids.tolist() == [[1, 2, 3, 11, 12], [1, 2, 3, 21, PAD], [4, 31, 32, 33, 34]]
    assert batch.tokens.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.tokens.positions.tolist() == [2, 3, 5 + 2, 10, 11, 12, 13]
    assert batch.targets.tolist() == [11, 12, 21, 31, 32, 33, 34]
    assert batch.mask.tolist() == [[True, True, False, False], [True, False, False, False], [True] * 4]
    assert batch.role.tolist() == [1, -1, 0]
    assert batch.prompt.tolist() == [0, 0, 1]
    assert batch.pairs.tolist() == [[0, 1]]
    assert batch.weight.tolist() == [2.0, 0.5, 1.0]
    assert batch.reward.tolist() == [0.5, -1.0, 0.0]
    assert (batch.rows, batch.num_tokens) == (tuple(TWO_ROWS), 14)


def test_types():
    batch = collate(TWO_ROWS, PAD)
    whole = (
        batch.tokens.input_ids,
        batch.tokens.attention_mask,
        batch.tokens.positions,
        batch.targets,
        batch.role,
        batch.prompt,
        batch.pairs,
    )
    assert {tensor.dtype for tensor in whole} == {torch.long}
    assert batch.mask.dtype == torch.bool
    assert batch.weight.dtype == batch.reward.dtype == torch.float32


def test_reward_reaches_an_objective_only_if_every_response_it_sees_has_one():
    def seen(*responses: TokenizedResponse, roles: tuple[int, ...] = (1, 0, -1)) -> list[float] | None:
        reward = collate([row([1], *responses)], PAD).for_objective(set(roles)).reward
        return None if reward is None else reward.tolist()

    assert seen(answer(2, reward=1.0), answer(3)) is None
    assert seen(answer(2), answer(3)) is None
    assert seen(answer(2, reward=1.0), answer(3, reward=0.0)) == [1.0, 0.0]
    assert seen(answer(2, reward=1.0), answer(3, role=0)) == [1.0, 0.0], "samples have none by nature"
    assert seen(answer(2, role=0), answer(3, role=0)) is None
    assert seen(answer(2, reward=3.0), answer(3, role=1), roles=(-1,)) == [3.0], "the positive is not seen"
    assert seen(answer(2), answer(3, role=1, reward=2.0), roles=(-1,)) is None
    assert seen(answer(2), answer(3, role=1, reward=2.0), roles=(-1, 1)) is None


def test_padding_with_a_token_that_occurs_is_told_apart():
    """Models without a pad token are padded with EOS, which ends every response, too."""
    batch = collate([row([1], answer(5, PAD), answer(6, 7, PAD))], PAD)
    assert batch.tokens.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.targets.tolist() == [5, PAD, 6, 7, PAD]


# Many, against plain Python


@pytest.mark.parametrize("seed", range(3))
def test_positions_targets_and_mask_against_a_loop(seed):
    rows = some_rows(7, seed)
    batch = collate(rows, PAD)
    positions, targets, mask = [], [], []
    width, longest = batch.tokens.input_ids.shape[1], batch.mask.shape[1]
    responses = [(one.prompt_ids, response.ids) for one in rows for response in one.responses]
    for index, (prompt_ids, ids) in enumerate(responses):
        for number, token in enumerate(ids):
            positions.append(index * width + len(prompt_ids) + number - 1)
            targets.append(token)
        mask.append([number < len(ids) for number in range(longest)])
    assert batch.tokens.positions.tolist() == positions
    assert batch.targets.tolist() == targets
    assert batch.mask.tolist() == mask
    assert width == max(len(prompt_ids) + len(ids) for prompt_ids, ids in responses)
    assert longest == max(len(ids) for _, ids in responses)


@pytest.mark.parametrize("seed", range(3))
def test_every_position_predicts_its_target(seed):
    batch = collate(some_rows(7, seed), PAD)
    tokens, real = batch.tokens.input_ids.flatten(), batch.tokens.attention_mask.flatten()
    assert tokens[batch.tokens.positions + 1].tolist() == batch.targets.tolist()
    assert real[batch.tokens.positions + 1].all() and int(batch.mask.sum()) == len(batch.targets)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_all_those_inside_a_prompt_and_no_others(seed):
    rows = some_rows(9, seed)
    batch, expected, first = collate(rows, PAD), [], 0
    for one in rows:
        roles = {first + index: response.role for index, response in enumerate(one.responses)}
        expected += [[good, bad] for good in roles for bad in roles if roles[good] == 1 and roles[bad] == -1]
        first += len(roles)
    assert expected and sorted(batch.pairs.tolist()) == sorted(expected)
    assert (batch.prompt[batch.pairs[:, 0]] == batch.prompt[batch.pairs[:, 1]]).all()


def test_no_pairs_have_the_shape_of_pairs():
    assert collate([row([1], answer(2)), row([3], answer(4, role=1))], PAD).pairs.shape == (0, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_to_moves_every_tensor(layout):
    """Ten of a batch with nothing given for each token: three or four of them its tokens."""
    batch = collate(TWO_ROWS, PAD, layout).to(torch.device("meta"))
    fields = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    tensors = [*fields, *(value for value in batch.tokens if value is not None)]
    assert len(tensors) == (10 if layout == PADDED else 11)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert isinstance(batch.tokens, Tokens) and batch.rows == tuple(TWO_ROWS)


# A part of a micro-batch


def assert_same(part: MicroBatch, whole: MicroBatch) -> None:
    """In every field, of the same type."""
    assert vars(part).keys() == vars(whole).keys()
    for name, value in vars(whole).items():
        ours = getattr(part, name)
        given = zip(ours, value, strict=True) if name == "tokens" else [(ours, value)]
        for one, other in given:
            if isinstance(other, torch.Tensor):
                torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True, msg=name)
            else:
                assert one == other, name


def only(rows: list[TokenizedRow], roles: set[int]) -> list[TokenizedRow]:
    """The rows that have responses of `roles`, with those alone."""
    kept = [dataclasses.replace(one, responses=tuple(r for r in one.responses if r.role in roles)) for one in rows]
    return [one for one in kept if one.responses]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("role", [1, 0, -1])
def test_select_equals_collating_the_selected(seed, role, layout):
    rows = some_rows(8, seed)
    batch = collate(rows, PAD, layout)
    part = batch.select(batch.role == role)
    assert_same(part, collate(only(rows, {role}), PAD, layout))
    assert part.pairs.shape == (0, 2)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_select_any_responses_leaves_each_with_its_own_row(seed, layout):
    """Whatever is chosen: its tokens, its role, and the prompt that its number leads to."""
    batch = collate(some_rows(8, seed), PAD, layout)
    chosen = torch.rand(len(batch.role), generator=torch.Generator().manual_seed(seed)) < 0.5
    part = batch.select(chosen)
    flat = [(one.example.prompt, response) for one in batch.rows for response in one.responses]
    names = [part.rows[index].example.prompt for index in part.prompt.tolist()]
    responses = [response for one in part.rows for response in one.responses]
    assert 0 < len(responses) < len(flat)
    assert list(zip(names, responses, strict=True)) == [
        pair for pair, kept in zip(flat, chosen.tolist(), strict=True) if kept
    ]
    assert torch.equal(part.mask.sum(-1), batch.mask[chosen].sum(-1))
    assert torch.equal(part.targets, batch.targets[chosen[:, None].expand_as(batch.mask)[batch.mask]])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_select_all_is_the_same(layout):
    batch = collate(TWO_ROWS, PAD, layout)
    assert_same(batch.select(torch.ones(3, dtype=torch.bool)), batch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_select_nothing_is_a_stand_in(layout):
    batch = collate(TWO_ROWS, PAD, layout)
    assert_same(batch.select(torch.zeros(3, dtype=torch.bool)), collate([], PAD, layout))


def test_select_takes_rewards_along():
    batch = collate(TWO_ROWS, PAD)
    assert batch.select(batch.role != 1).reward.tolist() == [-1.0, 0.0]
    assert batch.select(batch.role != 1).weight.tolist() == [0.5, 1.0]


def test_select_stays_on_the_device():
    """With what chooses on it, as an objective's roles do."""
    batch = collate(TWO_ROWS, PAD)
    part = batch.select(batch.role > 0)
    assert part.role.device == part.tokens.positions.device == batch.role.device


def test_select_keeps_retain_rows_apart():
    batch = collate([held(row([3], answer(21, role=1), answer(22, role=1))), *TWO_ROWS], PAD)
    part = batch.select(batch.role > 0)
    assert part.num_retain == 2 and part.rows[-1].retain and part.targets.tolist() == [11, 12, 21, 22]


# The stand-in for no rows


def test_no_rows_give_a_stand_in_that_can_be_forwarded():
    batch = collate([], PAD)
    assert batch.rows == () and batch.num_tokens == 0
    assert batch.tokens.input_ids.tolist() == [[PAD, PAD]] and batch.tokens.attention_mask.tolist() == [[1, 1]]
    assert batch.tokens.input_ids.flatten()[batch.tokens.positions + 1].tolist() == batch.targets.tolist()
    assert int(batch.mask.sum()) == len(batch.targets) == 1


def test_no_rows_give_a_stand_in_of_one_token_in_the_packed_layout():
    batch = collate([], PAD, PACKED)
    assert batch.rows == () and batch.num_tokens == 0
    tokens = batch.tokens
    assert (tokens.input_ids.tolist(), tokens.position_ids.tolist()) == ([[PAD]], [[0]])
    assert (tokens.attention_mask.tolist(), tokens.positions.tolist()) == ([[[[0, 1, 0, 0]]]], [0])
    assert int(batch.mask.sum()) == len(batch.targets) == 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_stand_in_has_the_types_and_dimensions_of_others(layout):
    empty, other = collate([], PAD, layout), collate([row([1], answer(2))], PAD, layout)
    assert empty.layout == other.layout == layout
    for name, tensor in [*vars(other).items(), *other.tokens._asdict().items()]:
        if isinstance(tensor, torch.Tensor):
            ours = getattr(empty.tokens if name in Tokens._fields else empty, name)
            assert ours.dtype == tensor.dtype and ours.ndim == tensor.ndim, name


# What an objective sees, and what the retain term does


def full(*ids: int, role: int = -1, reward: float | None = None) -> TokenizedResponse:
    """A response with values of each token that tell whose they are: its ids, over 10, 100 and -1000."""
    return dataclasses.replace(
        answer(*ids, role=role, reward=reward),
        step_labels=tuple((-1, 0, 1)[token % 3] for token in ids),
        token_weights=tuple(token / 10 for token in ids),
        behavior_logps=tuple(-float(token) for token in ids),
    )


def test_values_of_each_token_by_hand():
    batch = collate([row([1, 2], full(12, 13, 14), full(15))], PAD)
    assert batch.step_label.tolist() == [[-1, 0, 1], [-1, 0, 0]] and batch.step_label.dtype == torch.long
    assert batch.token_weight.tolist() == [pytest.approx([1.2, 1.3, 1.4]), pytest.approx([1.5, 0, 0])]
    assert batch.behavior_logps.tolist() == [[-12, -13, -14], [-15, 0, 0]]
    assert batch.token_weight.dtype == batch.behavior_logps.dtype == torch.float32


def test_a_response_without_labels_is_unjudged_and_one_without_weights_weighs_1():
    batch = collate([row([1], full(12, 13), answer(3))], PAD)
    assert batch.step_label.tolist() == [[-1, 0], [0, 0]]
    assert batch.token_weight.tolist() == [pytest.approx([1.2, 1.3]), [1, 0]]


def test_nothing_given_is_none():
    batch = collate([row([1], answer(2), answer(3, role=1))], PAD)
    assert batch.step_label is batch.token_weight is batch.behavior_logps is batch.reward is None


def test_behavior_reaches_an_objective_only_if_every_response_it_sees_has_it():
    batch = collate([row([1], full(12, 13), answer(3, role=1))], PAD)
    assert batch.for_objective({1, -1}).behavior_logps is None
    assert batch.for_objective({-1}).behavior_logps.tolist() == [[-12, -13]]
    assert batch.for_objective({1}).behavior_logps is None


def test_retain_rows_lie_last_and_no_objective_sees_them():
    first = row([1, 2], answer(11, 12, role=1), answer(13))
    last = row([4, 5, 6], answer(31))
    batch = collate([held(row([3], answer(21, 22, 23, role=1))), first, last], PAD)
    assert batch.num_retain == 1 and batch.rows[-1].retain
    seen, alone = batch.for_objective({1, 0, -1}), collate([first, last], PAD)
    for name in ("role", "pairs", "prompt", "targets", "weight"):
        assert getattr(seen, name).tolist() == getattr(alone, name).tolist(), name
    assert len(seen.tokens.positions) == len(alone.tokens.positions) == 4


def test_retain_rows_take_nothing_from_the_objective_and_give_it_nothing():
    """They need no rewards and no behaviour; and theirs, if they have any, are not for the objective."""
    rewarded, plain = row([1], full(11, 12, reward=3.0)), row([1], answer(11, 12))
    seen = collate([held(row([3], answer(21, role=1))), rewarded], PAD).for_objective({-1})
    assert seen.reward.tolist() == [3.0] and seen.behavior_logps.tolist() == [[-11, -12]]
    seen = collate([held(row([3], full(21, role=1, reward=1.0))), plain], PAD).for_objective({-1})
    assert seen.reward is seen.behavior_logps is None


def mixed_rows(seed: int) -> list[TokenizedRow]:
    """`some_rows` with everything given, behind two retain rows."""
    filled = [
        dataclasses.replace(one, responses=tuple(full(*r.ids, role=r.role, reward=r.ids[0] / 7) for r in one.responses))
        for one in some_rows(8, seed)
    ]
    return [held(row([7, 8], full(5, 6, role=1))), *filled, held(row([9], answer(4, role=1)))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("roles", [{1, -1}, {-1}, {1}, {-1, 0}, {1, 0, -1}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_what_an_objective_sees_equals_rows_with_those_responses_alone(seed, roles, layout):
    rows = mixed_rows(seed)
    seen = collate(rows, PAD, layout).for_objective(roles)
    assert_same(seen, collate(only([one for one in rows if not one.retain], roles), PAD, layout))
    assert (len(seen.pairs) > 0) == (roles >= {1, -1}) and seen.num_retain == 0
    assert None not in (seen.reward, seen.step_label, seen.token_weight, seen.behavior_logps)


@pytest.mark.parametrize("seed", range(3))
def test_is_for_and_is_retained_part_the_responses(seed):
    batch = collate(mixed_rows(seed), PAD)
    last = [False] * (len(batch.role) - 2) + [True] * 2
    role = batch.role.tolist()
    assert batch.is_retained(False).tolist() == last
    assert batch.is_retained(True).tolist() == [a or b > 0 for a, b in zip(last, role, strict=True)]
    for roles in ({-1}, {1, -1}, {0, -1}):
        expected = [b in roles and not a for a, b in zip(last, role, strict=True)]
        assert batch.is_for(roles).tolist() == expected


def test_positives_that_only_the_retain_term_reads():
    """An objective on negatives, `retain.positives` on: the same micro-batch serves both."""
    batch = collate([row([1], answer(11, role=1), answer(12, 13), answer(14)), row([2], answer(15))], PAD)
    seen = batch.for_objective({-1})
    assert (seen.role.tolist(), seen.targets.tolist(), seen.prompt.tolist()) == ([-1] * 3, [12, 13, 14, 15], [0, 0, 1])
    assert seen.pairs.shape == (0, 2) and len(batch.pairs) == 2
    assert batch.targets[batch.is_retained(True)[:, None].expand(batch.mask.shape)[batch.mask]].tolist() == [11]
    assert not (batch.is_for({-1}) & batch.is_retained(True)).any()
    assert [one.example for one in seen.rows] == [one.example for one in batch.rows], "which name them in errors"
    assert [len(one.responses) for one in seen.rows] == [2, 1]


def test_pairs_are_numbered_anew():
    """The sample between them is not seen: positive 0 and negatives 2, 3 become 0, 1, 2; samples of row two go, too."""
    first = row([1], answer(11, role=1), answer(12, role=0), answer(13), answer(14))
    second = row([2], answer(21, role=0), answer(22), answer(23, role=1))
    seen = collate([first, second], PAD).for_objective({1, -1})
    assert seen.targets.tolist() == [11, 13, 14, 22, 23]
    assert seen.pairs.tolist() == [[0, 1], [0, 2], [4, 3]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_stand_in_is_for_nobody(layout):
    """Its one response has the number of a sample and must not be taken for one."""
    batch = collate([], PAD, layout)
    assert not batch.is_for({1, 0, -1}).any() and not batch.is_retained(True).any()
    assert_same(batch.for_objective({1, 0, -1}), batch)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_retain_rows_alone_are_nothing_for_the_objective(layout):
    """It gets a stand-in, which has no rows."""
    batch = collate([held(row([1], answer(2, 3, role=1)))], PAD, layout)
    assert not batch.is_for({1, 0, -1}).any() and batch.is_retained(False).all()
    assert_same(batch.for_objective({1}), collate([], PAD, layout))


# Packed


@pytest.mark.parametrize("seed", range(3))
def test_layouts_differ_in_their_tokens_alone(seed):
    """Whatever objectives see does not depend on the layout."""
    rows = mixed_rows(seed)
    one, other = collate(rows, PAD), collate(rows, PAD, PACKED)
    assert one.tokens.input_ids.shape != other.tokens.input_ids.shape
    assert_same(dataclasses.replace(one, tokens=other.tokens, layout=PACKED), other)


def test_packed_retain_rows_lie_last():
    batch = collate([held(row([3], answer(21, 22, role=1))), *TWO_ROWS], PAD, PACKED)
    assert batch.tokens.input_ids.tolist() == [[1, 2, 3, 11, 4, 31, 32, 33, 3, 21]]
    assert batch.tokens.attention_mask[0, 0, -2:].tolist() == [[8, 9, 8, 8], [9, 10, 8, 9]]
    assert batch.tokens.positions.tolist() == [2, 3, 2, 4, 5, 6, 7, 8, 9]
    assert batch.num_retain == 1 and batch.num_tokens == 10
