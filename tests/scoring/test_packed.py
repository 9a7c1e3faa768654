"""The packed layout against every response forwarded alone, model by model: values and gradients; who sees whom."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations import flex_attention as transformers_flex

from align.data.collate import MicroBatch, collate
from align.data.layout import PACKED, Tokens
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.scoring import logprobs
from align.scoring.attention import NAME, block_mask, inputs
from align.scoring.head import causal_lm
from align.scoring.logprobs import hidden_states, response_logps
from tests.scoring.families import (
    ADAPTERS,
    FAMILIES,
    VOCABULARY,
    assert_same_gradients,
    build,
    eager,
    gradients,
    naive_logps,
    ready,
    some_rows,
)

EVERY = [*FAMILIES, *ADAPTERS]


@pytest.fixture(scope="module")
def rows() -> list[TokenizedRow]:
    return some_rows()


@pytest.fixture(scope="module")
def batch(rows) -> MicroBatch:
    return collate(rows, 0, PACKED)


def in_double(model: nn.Module, rows: list[TokenizedRow]) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs (N, T) and their gradients, computed in float64 response by response, as float32."""
    logps = naive_logps(eager(model).double(), rows)
    return logps.detach().float(), {name: values.float() for name, values in gradients(logps, model).items()}


# the same as one by one


@pytest.mark.parametrize("name", EVERY)
def test_packed_equals_one_by_one(name, batch, rows):
    """Value, and gradient of every weight that trains."""
    expected, wanted = in_double(build(name), rows)
    model = ready(build(name))
    logps = response_logps(model, batch)
    assert logps.dtype == torch.float32 and logps.shape == batch.mask.shape
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(logps, model), wanted)


@pytest.mark.parametrize("name", EVERY)
def test_padded_with_our_attention_equals_one_by_one(name, rows):
    expected, wanted = in_double(build(name), rows)
    model = ready(build(name))
    logps = response_logps(model, collate(rows, 0))
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(logps, model), wanted)


def test_soft_capping_is_at_work(rows):
    """Else the tests above would not notice that it is missing."""
    model, uncapped = build("gemma2, soft-capped"), build("gemma2, soft-capped")
    for layer in uncapped.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    with torch.no_grad():
        assert (naive_logps(eager(model), rows) - naive_logps(eager(uncapped), rows)).abs().max() > 0.01


@pytest.mark.parametrize("options", [{"use_reentrant": False}, {"use_reentrant": True}, None], ids=str)
@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "lora on the head"])
def test_checkpointed_activations(name, options, batch, rows):
    """Also as transformers has it by default."""
    expected, wanted = in_double(build(name), rows)
    model = ready(build(name)).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    causal_lm(model).enable_input_require_grads()
    logps = response_logps(model, batch)
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert logps.requires_grad
    if options == {"use_reentrant": True}:  # which knows `backward` alone
        weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(4))
        (logps * weights).sum().backward()
        found = {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}
    else:
        found = gradients(logps, model)
    assert_same_gradients(found, wanted)


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "qwen3"])
def test_bf16_model(name, batch, rows):
    with torch.no_grad():
        expected = naive_logps(eager(build(name)), rows)
        logps = response_logps(ready(build(name).bfloat16()), batch)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=0, atol=0.15)


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "qwen3", "lora on the head"])
def test_autocast(name, batch, rows):
    """Queries and keys come in float32 then (rotary positions are), values in bf16."""
    expected, wanted = in_double(build(name), rows)
    model = ready(build(name))
    with torch.autocast("cpu", torch.bfloat16):
        logps = response_logps(model, batch)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=0, atol=0.1)
    assert_same_gradients(gradients(logps, model), wanted, tolerance=0.05)


def test_bf16_model_trains(batch):
    model = ready(build("llama").bfloat16())
    for name, values in gradients(response_logps(model, batch), model).items():
        assert values.isfinite().all() and values.any(), name


@pytest.mark.parametrize("prompt, lengths", [(1, (1,)), (1, (1, 1, 1)), (1, (5, 1)), (6, (2, 2)), (9, (1, 30))])
def test_small_trees(prompt, lengths):
    """Prompts of one token, responses of one token, of which nothing is forwarded."""
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCABULARY, (count,), generator=generator).tolist())

    rows = [TokenizedRow(ids(prompt), tuple(TokenizedResponse(ids(length), 1) for length in lengths), None)]
    expected = naive_logps(build("llama"), rows)
    found = response_logps(ready(build("llama")), collate(rows, 0, PACKED))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_the_stand_in_of_a_rank_without_rows():
    """It is forwarded and backwarded like any other: its gradient is 0 and no nan."""
    model = ready(build("llama"))
    (response_logps(model, collate([], 0, PACKED)).sum() * 0.0).backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in model.parameters())


# who sees whom


def others_than(batch: MicroBatch, response: int) -> tuple[set[int], set[int]]:
    """Places in the packed tokens (of the response and its prompt, all others), by a loop over segments."""
    segments = iter(batch.tokens.attention_mask[0, 0].tolist())
    own, index = set(), 0
    for row in batch.rows:
        prompt = next(segments)
        for one in row.responses:
            segment = next(segments) if len(one.ids) > 1 else (0, 0)
            if index == response:
                own = {*range(*prompt[:2]), *range(*segment[:2])}
            index += 1
    return own, set(range(batch.tokens.input_ids.numel())) - own


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "gemma3"])
def test_no_gradient_from_siblings_and_other_trees(name, batch):
    """Of the log-prob of each response, by what the embedding gives out: exactly 0 outside its own text."""
    model, embedded = ready(build(name)), []
    model.get_input_embeddings().register_forward_hook(lambda module, args, output: embedded.append(output))
    logps = response_logps(model, batch)
    for response in range(len(batch.role)):
        (found,) = torch.autograd.grad(logps[response].sum(), embedded, retain_graph=True)
        moved = set(found[0].abs().sum(-1).nonzero()[:, 0].tolist())
        own, others = others_than(batch, response)
        assert moved == own and others


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped"])
def test_tokens_of_one_response_change_no_other(name, batch):
    model = ready(build(name))
    with torch.no_grad():
        before = response_logps(model, batch)
        for changed, one in enumerate(response for row in batch.rows for response in row.responses):
            other = TokenizedResponse(tuple((token + 7) % VOCABULARY for token in one.ids), 1)
            rows = [
                TokenizedRow(row.prompt_ids, tuple(other if each is one else each for each in row.responses), None)
                for row in batch.rows
            ]
            after = response_logps(model, collate(rows, 0, PACKED))
            others = torch.arange(len(batch.role)) != changed
            torch.testing.assert_close(after[others], before[others], rtol=0, atol=1e-6)
            assert (after[changed] - before[changed]).abs().max() > 0.01


def test_hidden_states_are_those_that_predict(batch, rows):
    """(M, H), response by response: equal to the padded layout's."""
    model = ready(build("llama"))
    found, expected = hidden_states(model, batch), hidden_states(model, collate(rows, 0))
    assert found.shape == (len(batch.targets), model.config.hidden_size)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


# on a GPU


@pytest.mark.parametrize("name", EVERY)
def test_block_masks_reach_every_layer(name, batch, rows, monkeypatch):
    """The way of a GPU on a CPU, as far as that goes: FlexAttention's forward, not compiled."""

    def on_a_gpu(tokens: Tokens) -> dict[str, Tensor | BlockMask]:
        assert inputs(tokens)["attention_mask"] is tokens.attention_mask
        made = block_mask(tokens.attention_mask, tokens.input_ids.shape[1])
        return inputs(tokens) | {"attention_mask": made}

    def plain(*args, training: bool, **options) -> Tensor:
        calls.append(options["block_mask"])
        return flex_attention(*args, **options)

    calls = []
    monkeypatch.setattr(transformers_flex, "compile_friendly_flex_attention", plain)
    monkeypatch.setattr(logprobs, "inputs", on_a_gpu)
    expected, _ = in_double(build(name), rows)
    model = build(name)
    causal_lm(model).set_attn_implementation(NAME)
    with torch.no_grad():
        found = response_logps(model, batch)
    assert len(calls) == causal_lm(model).config.num_hidden_layers
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["llama", "llama, one key-value head", "gemma2, soft-capped", "lora on the head"])
def test_flex_attention_on_a_gpu(name, rows):
    """Its compiled forward and backward; heads of 16, the smallest its kernels take."""
    expected, wanted = in_double(build(name, head_dim=16), rows)
    device = torch.device("cuda")
    model = ready(build(name, head_dim=16).to(device))
    assert causal_lm(model).config._attn_implementation == NAME
    logps = response_logps(model, collate(rows, 0, PACKED).to(device))
    torch.testing.assert_close(logps.cpu(), expected, rtol=1e-3, atol=1e-3)
    found = {key: values.cpu() for key, values in gradients(logps, model).items()}
    assert_same_gradients(found, wanted, tolerance=1e-3)
