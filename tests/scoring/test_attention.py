"""Our attention function over trees: its masks, FlexAttention on them, and all that must stay as it was."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention

from align.data.collate import collate
from align.data.layout import PACKED, packed
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.scoring import segments as segments_module
from align.scoring.attention import attention, block_mask, inputs
from align.scoring.head import causal_lm
from tests.scoring.families import build, eager, ready, some_rows

# masks


def random_segments(seed: int) -> tuple[Tensor, int]:
    draw = random.Random(seed)
    rows = [
        TokenizedRow(
            tuple(range(draw.randint(1, 90))),
            tuple(TokenizedResponse(tuple(range(draw.randint(1, 70))), 1) for _ in range(draw.randint(1, 4))),
            None,
        )
        for _ in range(draw.randint(1, 5))
    ]
    tokens = packed(rows)
    return tokens.attention_mask, tokens.input_ids.numel()


def seen_by_loop(segments: Tensor, tokens: int) -> Tensor:
    """(S, S) bool: what `align.data.layout.packed` says of segments, in loops."""
    seen = torch.zeros(tokens, tokens, dtype=torch.bool)
    for start, end, prefix, prefix_end in segments[0, 0].tolist():
        for query in range(start, end):
            seen[query, start : query + 1] = True
            seen[query, prefix:prefix_end] = True
    return seen


@pytest.mark.parametrize("seed", range(6))
def test_block_mask_is_the_relation_of_the_segments(seed):
    segments, tokens = random_segments(seed)
    mask, expected = block_mask(segments, tokens), seen_by_loop(segments, tokens)
    places = torch.arange(tokens)
    found = mask.mask_mod(torch.tensor(0), torch.tensor(0), places[:, None], places[None, :])
    assert torch.equal(found, expected)


@pytest.mark.parametrize("seed", range(6))
def test_blocks_that_are_left_out_hold_nothing(seed):
    """Of 128 x 128: FlexAttention looks at no other than those of the block mask."""
    segments, tokens = random_segments(seed)
    blocks = block_mask(segments, tokens).to_dense()[0, 0].bool()
    size = 128
    expected = nn.functional.pad(seen_by_loop(segments, tokens), (0, -tokens % size, 0, -tokens % size))
    expected = expected.unflatten(0, (-1, size)).unflatten(2, (-1, size)).any(3).any(1)
    assert torch.equal(blocks, expected)


@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("seed", range(2))
def test_segments_equal_flex_attention(seed, softcap, key_value_heads):
    """Its forward, uncompiled: the only one there is on a CPU."""
    segments, tokens = random_segments(seed)
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, 4, tokens, 8, generator=generator)
    key, value = torch.randn(2, 1, key_value_heads, tokens, 8, generator=generator)

    def capped(score: Tensor, batch: Tensor, head: Tensor, at: Tensor, of: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    expected = flex_attention(
        query, key, value, score_mod=capped if softcap else None, block_mask=block_mask(segments, tokens),
        scale=0.4, enable_gqa=True,
    )  # fmt: skip
    found, weights = attention(nn.Module(), query, key, value, segments, scaling=0.4, softcap=softcap)
    assert weights is None
    torch.testing.assert_close(found, expected.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_flex_attention_is_not_compiled_for_every_micro_batch():
    """But for the first shape, for what fits one block, and for all others; dynamo gives up at eight graphs."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(flex_attention, backend="eager")
    with torch.no_grad():
        for seed in range(20):
            segments, tokens = random_segments(seed)
            query, key, value = torch.randn(3, 1, 2, tokens, 8)
            compiled(query, key, value, block_mask=block_mask(segments, tokens))
    assert 1 <= torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 4


@pytest.mark.parametrize("key_value_heads", [4, 1])
@pytest.mark.parametrize("softcap", [None, 1.5])
def test_segments_equal_a_dense_mask(softcap, key_value_heads):
    """Value and gradients of query, key and value; with the head size's own scaling."""
    segments, tokens = random_segments(0)
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(1, 4, tokens, 8, generator=generator).requires_grad_()
    key, value = (torch.randn(1, key_value_heads, tokens, 8, generator=generator).requires_grad_() for _ in range(2))
    wide_key, wide_value = (each.repeat_interleave(4 // key_value_heads, 1) for each in (key, value))
    scores = query @ wide_key.transpose(2, 3) / 8**0.5
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    seen = seen_by_loop(segments, tokens)
    expected = (scores.masked_fill(~seen, -torch.inf).softmax(-1) @ wide_value).transpose(1, 2)
    found, _ = attention(nn.Module(), query, key, value, segments, softcap=softcap)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(found.shape, generator=generator)
    ours, theirs = (torch.autograd.grad((each * weights).sum(), [query, key, value]) for each in (found, expected))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_attention_dropout_is_at_work():
    segments, tokens = random_segments(0)
    query, key, value = torch.randn(3, 1, 4, tokens, 8, generator=torch.Generator().manual_seed(0))
    for softcap in (None, 1.5):
        plain = attention(nn.Module(), query, key, value, segments, softcap=softcap)[0]
        none = attention(nn.Module(), query, key, value, segments, softcap=softcap, dropout=0.0)[0]
        some = attention(nn.Module(), query, key, value, segments, softcap=softcap, dropout=0.5)[0]
        assert torch.equal(plain, none) and (some - plain).abs().mean() > 0.1


@pytest.mark.parametrize("option", ["s_aux", "position_bias"])
def test_options_it_does_not_know_are_refused(option):
    segments, tokens = random_segments(0)
    query = torch.randn(1, 4, tokens, 8)
    with pytest.raises(NotImplementedError, match=option):
        attention(nn.Module(), query, query, query, segments, **{option: torch.zeros(4)})
    attention(nn.Module(), query, query, query, segments, **{option: None})


def test_inputs_of_either_layout():
    rows = some_rows()
    tokens = collate(rows, 0, PACKED).tokens
    given = inputs(tokens)
    assert given.keys() == {"input_ids", "attention_mask", "position_ids"}
    assert given["attention_mask"] is tokens.attention_mask, "segments, on a CPU"
    assert inputs(collate(rows, 0).tokens).keys() == {"input_ids", "attention_mask"}


# whatever else the model does


@pytest.mark.parametrize("original", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "name", ["llama", "llama, one key-value head", "qwen3", "mistral, wide window", "gemma3", "lora"]
)
def test_generation_and_logits_stay_as_they_were(name, original):
    """Greedy, with a cache, prompts padded on the left; and all logits of padded texts."""
    model, ours = build(name), ready(build(name))
    causal_lm(model).set_attn_implementation(original)
    assert_writes_the_same(model, ours)


def test_soft_capped_generation_is_that_of_eager_attention():
    assert_writes_the_same(eager(build("gemma2, soft-capped")), ready(build("gemma2, soft-capped")))


def assert_writes_the_same(model: nn.Module, ours: nn.Module) -> None:
    prompts = torch.tensor([[0, 0, 0, 5, 6, 7], [8, 9, 10, 11, 12, 13], [0, 14, 15, 16, 17, 18]])
    mask = (prompts != 0).long()
    with torch.no_grad():
        options = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
        expected = model.generate(input_ids=prompts, **options)
        assert torch.equal(ours.generate(input_ids=prompts, **options), expected)
        assert len(set(expected[:, 6:].flatten().tolist())) > 3, "too dull to tell"
        right, right_mask = prompts.flip(1), mask.flip(1)
        found = ours(input_ids=right, attention_mask=right_mask).logits[right_mask.bool()]
        torch.testing.assert_close(
            found, model(input_ids=right, attention_mask=right_mask).logits[right_mask.bool()], rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(
            ours(input_ids=prompts[1:2]).logits, model(input_ids=prompts[1:2]).logits, rtol=1e-5, atol=1e-5
        )


# the operation on a CPU


def by_loop(query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scaling: float) -> Tensor:
    """(S, A, D) attention as it is defined, over (A, S, D) queries and (K, S, D) keys and values."""
    groups = len(query) // len(key)
    key, value = key.repeat_interleave(groups, 0), value.repeat_interleave(groups, 0)
    scores = (query @ key.transpose(1, 2) * scaling).masked_fill(~seen_by_loop(segments, query.shape[1]), -torch.inf)
    return (scores.softmax(-1) @ value).transpose(0, 1)


@pytest.mark.parametrize("queries", [256, 16, 1])  # of a block
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_tree_attention_and_its_gradients(seed, kv_heads, queries, monkeypatch):
    monkeypatch.setattr(segments_module, "QUERIES", queries)
    segments, tokens = random_segments(seed)
    generator = torch.Generator().manual_seed(seed)
    given = [
        torch.randn(heads, tokens, 8, generator=generator, requires_grad=True) for heads in (4, kv_heads, kv_heads)
    ]
    exact = [one.detach().double().requires_grad_() for one in given]
    slopes = torch.randn(tokens, 4, 8, generator=generator)
    found = segments_module.tree_attention(*given, segments.flatten().tolist(), 0.3)
    expected = by_loop(*exact, segments, 0.3)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=2e-6)
    found.backward(slopes)
    expected.backward(slopes.double())
    for one, other in zip(given, exact, strict=True):
        torch.testing.assert_close(one.grad.double(), other.grad, rtol=1e-5, atol=1e-5)


def test_tree_attention_is_a_sound_operation():
    segments, tokens = random_segments(0)
    given = [torch.randn(heads, tokens, 8, requires_grad=True) for heads in (4, 2, 2)]
    flat = segments.flatten().tolist()
    found = torch.library.opcheck(
        torch.ops.align.tree_attention.default,
        (*given, flat, 0.3),
        test_utils=("test_schema", "test_autograd_registration"),
    )
    assert set(found.values()) == {"SUCCESS"}
