"""Rows to tensors, checked against plain-Python loops; rows to ranks, checked by counting."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
import torch

from align.data.collate import MicroBatch, collate, padded_tokens, share_out
from align.data.examples import Example
from align.data.tokenize import TokenizedResponse, TokenizedRow

PAD = 99


def row(prompt: list[int], *responses: TokenizedResponse, name: str = "Hi") -> TokenizedRow:
    return TokenizedRow(tuple(prompt), responses, Example(name, (), "by hand", "my.jsonl:1"))


def answer(*ids: int, role: int = -1, weight: float = 1.0, reward: float | None = None) -> TokenizedResponse:
    return TokenizedResponse(ids, role, weight, reward)


def some_rows(count: int, seed: int = 0, longest: int = 9) -> list[TokenizedRow]:
    """Rows of unequal lengths, with one to four responses of all roles; each token number occurs once."""
    draw = random.Random(seed)
    numbers = iter(range(100, 1_000_000))

    def ids(most: int) -> list[int]:
        return [next(numbers) for _ in range(draw.randint(1, most))]

    return [
        row(
            ids(longest),
            *(answer(*ids(longest), role=draw.choice([1, 0, -1])) for _ in range(draw.randint(1, 4))),
            name=f"Prompt {index}",
        )
        for index in range(count)
    ]


TWO_ROWS = [
    row([1, 2, 3], answer(11, 12, role=1, weight=2.0, reward=0.5), answer(21, role=-1, weight=0.5, reward=-1.0)),
    row([4], answer(31, 32, 33, 34, role=0, reward=0.0)),
]


# One micro-batch, by hand


def test_tensors_by_hand():
    batch = collate(TWO_ROWS, PAD)
    assert batch.input_ids.tolist() == [[1, 2, 3, 11, 12], [1, 2, 3, 21, PAD], [4, 31, 32, 33, 34]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch.positions.tolist() == [2, 3, 5 + 2, 10, 11, 12, 13]
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
        batch.input_ids,
        batch.attention_mask,
        batch.positions,
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
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.targets.tolist() == [5, PAD, 6, 7, PAD]


# Many, against plain Python


@pytest.mark.parametrize("seed", range(3))
def test_positions_targets_and_mask_against_a_loop(seed):
    rows = some_rows(7, seed)
    batch = collate(rows, PAD)
    positions, targets, mask = [], [], []
    width, longest = batch.input_ids.shape[1], batch.mask.shape[1]
    responses = [(one.prompt_ids, response.ids) for one in rows for response in one.responses]
    for index, (prompt_ids, ids) in enumerate(responses):
        for number, token in enumerate(ids):
            positions.append(index * width + len(prompt_ids) + number - 1)
            targets.append(token)
        mask.append([number < len(ids) for number in range(longest)])
    assert batch.positions.tolist() == positions
    assert batch.targets.tolist() == targets
    assert batch.mask.tolist() == mask
    assert width == max(len(prompt_ids) + len(ids) for prompt_ids, ids in responses)
    assert longest == max(len(ids) for _, ids in responses)


@pytest.mark.parametrize("seed", range(3))
def test_every_position_predicts_its_target(seed):
    batch = collate(some_rows(7, seed), PAD)
    tokens, real = batch.input_ids.flatten(), batch.attention_mask.flatten()
    assert tokens[batch.positions + 1].tolist() == batch.targets.tolist()
    assert real[batch.positions + 1].all() and int(batch.mask.sum()) == len(batch.targets)


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


def test_to_moves_every_tensor():
    batch = collate(TWO_ROWS, PAD).to(torch.device("meta"))
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 10 and {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.rows == tuple(TWO_ROWS)


# A part of a micro-batch


def assert_same_but_for_padding(part: MicroBatch, whole: MicroBatch) -> None:
    """`part` may be wider than `whole`: it keeps the padding of what it was selected from."""
    width, longest = whole.input_ids.shape[1], whole.mask.shape[1]
    assert torch.equal(part.input_ids[:, :width], whole.input_ids)
    assert torch.equal(part.attention_mask[:, :width], whole.attention_mask)
    assert not part.attention_mask[:, width:].any()
    assert torch.equal(part.mask[:, :longest], whole.mask) and not part.mask[:, longest:].any()
    assert torch.equal(part.targets, whole.targets)
    assert torch.equal(part.positions // part.input_ids.shape[1], whole.positions // width)
    assert torch.equal(part.positions % part.input_ids.shape[1], whole.positions % width)
    assert torch.equal(part.role, whole.role) and torch.equal(part.weight, whole.weight)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("role", [1, 0, -1])
def test_select_equals_collating_the_selected(seed, role):
    rows = some_rows(8, seed)
    batch = collate(rows, PAD)
    kept = [[response for response in one.responses if response.role == role] for one in rows]
    part = batch.select(batch.role == role)
    assert_same_but_for_padding(
        part, collate([row(one.prompt_ids, *some) for one, some in zip(rows, kept, strict=True) if some], PAD)
    )
    assert part.prompt.tolist() == [index for index, some in enumerate(kept) for _ in some]
    assert part.pairs.shape == (0, 2)


def test_select_all_but_the_pairs_is_the_same():
    batch = collate(TWO_ROWS, PAD)
    part = batch.select(torch.ones(3, dtype=torch.bool))
    assert_same_but_for_padding(part, batch)
    assert torch.equal(part.reward, batch.reward) and torch.equal(part.prompt, batch.prompt)


def test_select_takes_rewards_along():
    batch = collate(TWO_ROWS, PAD)
    assert batch.select(batch.role != 1).reward.tolist() == [-1.0, 0.0]
    assert batch.select(batch.role != 1).weight.tolist() == [0.5, 1.0]


# The stand-in for no rows


def test_no_rows_give_a_stand_in_that_can_be_forwarded():
    batch = collate([], PAD)
    assert batch.rows == () and batch.num_tokens == 0
    assert batch.input_ids.tolist() == [[PAD, PAD]] and batch.attention_mask.tolist() == [[1, 1]]
    assert batch.input_ids.flatten()[batch.positions + 1].tolist() == batch.targets.tolist()
    assert int(batch.mask.sum()) == len(batch.targets) == 1


def test_the_stand_in_has_the_types_and_dimensions_of_others():
    empty, other = collate([], PAD), collate([row([1], answer(2))], PAD)
    for name, tensor in vars(other).items():
        if isinstance(tensor, torch.Tensor):
            assert getattr(empty, name).dtype == tensor.dtype and getattr(empty, name).ndim == tensor.ndim, name


# Rows to ranks

LARGE = 10**6


def padded(rows: list[TokenizedRow]) -> int:
    return collate(rows, PAD).input_ids.numel() if rows else 0


def test_padded_tokens_counts_what_collate_makes():
    for count in range(1, 6):
        assert padded_tokens(some_rows(count)) == padded(some_rows(count))
    assert padded_tokens([]) == 0


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("tokens", [1, 40, 200, LARGE])
@pytest.mark.parametrize("count", [0, 1, 2, 5, 24])
def test_every_row_goes_whole_to_one_place_and_ranks_keep_step(world, tokens, count):
    rows = some_rows(count)
    shares = share_out(rows, world=world, tokens_per_device=tokens)
    dealt = [one for share in shares for group in share for one in group]
    assert len(shares) == world
    assert len({len(share) for share in shares}) == 1 and shares[0]
    assert Counter(one.example.prompt for one in dealt) == Counter(one.example.prompt for one in rows)
    assert all(any(one is given for given in rows) for one in dealt)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("extra", [1.0, 1.5, 4.0])
def test_tokens_per_device_is_kept_where_each_row_fits(world, seed, extra):
    rows = some_rows(40, seed, longest=30)
    tokens = int(extra * max(padded([one]) for one in rows))
    shares = share_out(rows, world=world, tokens_per_device=tokens)
    assert max(padded(group) for share in shares for group in share) <= tokens


def test_a_row_larger_than_a_device_lies_alone():
    large = row(list(range(50)), *(answer(*range(50)) for _ in range(4)), name="large")
    shares = share_out([*some_rows(6), large], world=1, tokens_per_device=100)
    assert [large] in shares[0]
    assert all(padded(group) <= 100 for group in shares[0] if group != [large])


def test_ranks_without_a_row_get_empty_micro_batches():
    first, second = rows = some_rows(2)
    shares = share_out(rows, world=4, tokens_per_device=LARGE)
    assert [len(share) for share in shares] == [1, 1, 1, 1]
    assert sorted(len(share[0]) for share in shares) == [0, 0, 1, 1]
    assert {id(one) for share in shares for one in share[0]} == {id(first), id(second)}


def test_no_rows_are_one_empty_micro_batch_a_rank():
    assert share_out([], world=3, tokens_per_device=16) == [[[]], [[]], [[]]]


def equal_rows(count: int) -> list[TokenizedRow]:
    """Rows of one response and four tokens each."""
    return [row([1, 2], answer(3, 4), name=f"Prompt {index}") for index in range(count)]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("tokens, each", [(LARGE, 1), (33, 1), (20, 2), (9, 4), (5, 8)])
def test_as_few_micro_batches_as_fit(world, tokens, each):
    """Eight rows of four tokens a rank: 32 tokens."""
    shares = share_out(equal_rows(8 * world), world=world, tokens_per_device=tokens)
    assert [len(share) for share in shares] == [each] * world


@pytest.mark.parametrize("tokens, each", [(32, 1), (16, 2), (8, 4), (4, 8)])
def test_devices_that_are_just_full_need_no_further_micro_batch(tokens, each):
    (share,) = share_out(equal_rows(8), world=1, tokens_per_device=tokens)
    assert len(share) == each


@pytest.mark.parametrize("world", [1, 3])
def test_rows_of_like_length_lie_together_and_on_all_ranks_at_once(world):
    """Else micro-batches would be padded to the longest row of the step, and ranks would wait for each other."""
    shares = share_out(some_rows(60, longest=40), world=world, tokens_per_device=300)
    lengths = [max(one.lengths()) for together in zip(*shares, strict=True) for group in together for one in group]
    assert len(shares[0]) > 3 and lengths == sorted(lengths, reverse=True)


def test_the_order_of_rows_does_not_decide_their_company():
    rows = some_rows(12)
    shuffled = random.Random(1).sample(rows, len(rows))
    lengths = [
        [[max(one.lengths()) for one in group] for group in share_out(some, world=1, tokens_per_device=150)[0]]
        for some in (rows, shuffled)
    ]
    assert [max(group) for group in lengths[0] if group] == [max(group) for group in lengths[1] if group]


def test_ranks_get_about_the_same_work():
    rows = [one for seed in range(8) for one in some_rows(40, seed)]
    shares = share_out(rows, world=4, tokens_per_device=400)
    work = [sum(sum(one.lengths()) for group in share for one in group) for share in shares]
    assert max(work) < 1.2 * min(work)


# What an objective sees, and what the retain term does


def full(*ids: int, role: int = -1, reward: float | None = None) -> TokenizedResponse:
    """A response with values of each token that tell whose they are: its ids, over 10, 100 and -1000."""
    return dataclasses.replace(
        answer(*ids, role=role, reward=reward),
        step_labels=tuple((-1, 0, 1)[token % 3] for token in ids),
        token_weights=tuple(token / 10 for token in ids),
        behavior_logps=tuple(-float(token) for token in ids),
    )


def held(one: TokenizedRow) -> TokenizedRow:
    return dataclasses.replace(one, retain=True)


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
    assert len(seen.positions) == len(alone.positions) == 4


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


@pytest.mark.parametrize("roles", [{1, -1}, {-1}, {1}, {-1, 0}, {1, 0, -1}], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_what_an_objective_sees_equals_rows_with_those_responses_alone(seed, roles):
    rows = mixed_rows(seed)
    seen = collate(rows, PAD).for_objective(roles)
    kept = [
        dataclasses.replace(one, responses=tuple(r for r in one.responses if r.role in roles))
        for one in rows
        if not one.retain
    ]
    alone = collate([one for one in kept if one.responses], PAD)
    assert_same_but_for_padding(seen, alone)
    assert torch.equal(seen.pairs, alone.pairs) and (len(seen.pairs) > 0) == (roles >= {1, -1})
    assert torch.equal(seen.reward, alone.reward)
    for name in ("step_label", "token_weight", "behavior_logps"):
        ours, theirs = getattr(seen, name), getattr(alone, name)
        assert torch.equal(ours[:, : theirs.shape[1]], theirs) and not ours[:, theirs.shape[1] :].any(), name
    prompts = [index for index, one in enumerate(kept) for _ in one.responses]
    assert seen.prompt.tolist() == prompts, "prompts keep the numbers of their rows, which name them in errors"


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
    assert batch.rows == seen.rows


def test_pairs_are_numbered_anew():
    """The sample between them is not seen: positive 0 and negatives 2, 3 become 0, 1, 2; samples of row two go, too."""
    first = row([1], answer(11, role=1), answer(12, role=0), answer(13), answer(14))
    second = row([2], answer(21, role=0), answer(22), answer(23, role=1))
    seen = collate([first, second], PAD).for_objective({1, -1})
    assert seen.targets.tolist() == [11, 13, 14, 22, 23]
    assert seen.pairs.tolist() == [[0, 1], [0, 2], [4, 3]]


def test_a_stand_in_is_for_nobody():
    """Its one response has the number of a sample and must not be taken for one."""
    batch = collate([], PAD)
    assert not batch.is_for({1, 0, -1}).any() and not batch.is_retained(True).any()
    assert len(batch.for_objective({1, 0, -1}).role) == 0


def test_retain_rows_alone_are_nothing_for_the_objective():
    batch = collate([held(row([1], answer(2, 3, role=1)))], PAD)
    assert not batch.is_for({1, 0, -1}).any() and batch.is_retained(False).all()
    assert len(batch.for_objective({1}).role) == 0
