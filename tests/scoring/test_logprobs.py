"""Log-probs through the head in chunks against the plain way: one response at a time, all logits, log-softmax."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.data.collate import MicroBatch, collate
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.scoring import head as lm_head
from align.scoring import products
from align.scoring.head import causal_lm, kl_divergence
from align.scoring.logprobs import hidden_states, response_logps
from tests.scoring.families import (
    ADAPTERS,
    FAMILIES,
    HIDDEN,
    NARROW,
    VOCABULARY,
    assert_same_gradients,
    build,
    gradients,
    logits_one_by_one,
    naive_logps,
    some_rows,
)

EVERY = [*FAMILIES, *NARROW, *ADAPTERS]


@pytest.fixture(scope="module")
def rows() -> list[TokenizedRow]:
    return some_rows()


@pytest.fixture(scope="module")
def batch(rows) -> MicroBatch:
    return collate(rows, pad_id=0)


@pytest.fixture(params=[1, 7, 10**6])
def chunk(request, monkeypatch) -> int:
    """How many positions pass the head at once."""
    small_pieces(monkeypatch, request.param)
    return request.param


def small_pieces(monkeypatch, positions: int) -> None:
    """Chunks and tiles of so many positions; the tiles' words do not divide the vocabulary, unless all are in one."""
    words = 40 if positions < 1000 else VOCABULARY
    monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", positions * VOCABULARY)
    monkeypatch.setitem(products.TILE, "cpu", (positions, words))


def assert_equals_naive(model: nn.Module, batch: MicroBatch, rows: list[TokenizedRow]) -> None:
    """Value and gradient of every weight that trains."""
    expected = naive_logps(model, rows)
    logps = response_logps(model, batch)
    assert logps.dtype == torch.float32 and logps.shape == batch.mask.shape
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(logps, model), gradients(expected, model))


@pytest.mark.parametrize("name", EVERY)
def test_equals_all_logits(name, chunk, batch, rows):
    assert_equals_naive(build(name), batch, rows)


def test_soft_capping_and_scales_are_at_work():
    """Else the test above would not notice that they are missing."""
    for name in ("gemma2, soft-capped", "granite, scaled", "cohere, scaled"):
        values = torch.linspace(-3, 3, 5)
        assert (lm_head.logit_transform(build(name))(values) - values).abs().max() > 0.5


@pytest.mark.parametrize("name", ["llama", "lora", "lora on the head"])
def test_checkpointed_activations(name, chunk, batch, rows):
    model = build(name)
    expected = gradients(naive_logps(model, rows), model)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    logps = response_logps(model, batch)
    torch.testing.assert_close(logps, naive_logps(model, rows), rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(logps, model), expected)


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "lora on the head"])
def test_without_gradient(name, chunk, batch, rows):
    model = build(name)
    with torch.no_grad():
        logps = response_logps(model, batch)
        torch.testing.assert_close(logps, naive_logps(model, rows), rtol=1e-5, atol=1e-5)
    assert not logps.requires_grad


@pytest.mark.parametrize("part", ["lm_head", "norm", "embed_tokens"])
def test_only_a_part_of_the_model_trains(part, chunk, batch, rows):
    """The head's node must not ask for gradients that nobody wants, nor lose one."""
    model = build("llama").requires_grad_(False)
    getattr(model, part, getattr(model.model, part, None)).requires_grad_(True)
    assert_equals_naive(model, batch, rows)


def test_bf16_model_gives_float32(batch, rows):
    model = build("llama").bfloat16()
    with torch.no_grad():
        logps, expected = response_logps(model, batch), naive_logps(model, rows)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected.float(), rtol=0, atol=0.1)


def test_wrapped_as_ddp_does(batch):
    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            calls.append(1)
            return self.module(*args, **kwargs)

    calls = []
    model = build("lora")
    assert torch.equal(response_logps(Wrapper(model), batch), response_logps(model, batch))
    assert calls == [1], "a wrapper's own forward must run: it gathers weights and prepares the reduction"


def test_responses_left_out_change_nothing_for_the_others(batch):
    model = build("llama")
    kept = torch.tensor([True, False, True, False, False, True])
    part = batch.select(kept)
    whole = response_logps(model, batch)[kept, : part.mask.shape[1]]
    torch.testing.assert_close(response_logps(model, part), whole, rtol=1e-5, atol=1e-5)
    assert torch.equal(part.mask, batch.mask[kept, : part.mask.shape[1]])


@pytest.mark.parametrize("name", ["llama", "lora on the head"])
def test_head_is_left_as_it_was(name, batch):
    model = build(name)
    head = causal_lm(model).get_output_embeddings()
    before = dict(vars(head))
    response_logps(model, batch)
    assert "forward" not in vars(head) and vars(head).keys() == before.keys()


def test_a_wrapped_head_keeps_its_wrapper(batch, rows):
    """accelerate and others put a `forward` of their own on modules."""
    model = build("llama")
    wrapper = model.lm_head.forward
    model.lm_head.forward = wrapper
    response_logps(model, batch)
    assert vars(model.lm_head)["forward"] is wrapper


def test_head_is_restored_after_an_error(batch, rows):
    model = build("llama")
    hooks = len(model.model._forward_hooks)
    broken = collate([TokenizedRow((3, 4), (TokenizedResponse((5, 6), 1),), None)], pad_id=0)
    broken.targets[0] = VOCABULARY + 3
    with pytest.raises((RuntimeError, IndexError)):
        response_logps(model, broken)
    assert "forward" not in vars(model.lm_head)
    assert len(model.model._forward_hooks) == hooks
    torch.testing.assert_close(response_logps(model, batch), naive_logps(model, rows), rtol=1e-5, atol=1e-5)


class Rows(TorchDispatchMode):
    """How many rows of the vocabulary's length the largest tensor has that any operation makes (views are none)."""

    def __init__(self):
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and VOCABULARY in leaf.shape]
        values = [leaf.untyped_storage().nbytes() // leaf.element_size() for leaf in made]
        self.most = max([self.most, *(value // VOCABULARY for value in values)])
        return output


@pytest.mark.parametrize("name", ["llama", "llama tied", "gemma2, soft-capped", "lora on the head"])
@pytest.mark.parametrize("size", [3, 10**6])
def test_no_matrix_of_tokens_by_vocabulary(name, size, batch, monkeypatch):
    """Forward and backward; the weights of embedding and head, HIDDEN rows, are the largest there may be."""
    small_pieces(monkeypatch, size)
    model = build(name)
    assert len(batch.targets) > HIDDEN > len(batch.role)
    with Rows() as forward:
        logps = response_logps(model, batch)
    with Rows() as backward:
        logps.sum().backward()
    if size == 3:
        assert max(forward.most, backward.most) <= HIDDEN
    else:  # the watch does see such a matrix where there is one
        assert forward.most >= len(batch.targets) and backward.most >= len(batch.targets)


@pytest.mark.parametrize("name", ["llama", "llama tied", "gemma2, soft-capped", "lora on the head"])
def test_no_logits_are_kept_for_the_backward_pass(name, batch, monkeypatch):
    """Chunk by chunk they would add up to the same matrix: they are computed again instead."""
    small_pieces(monkeypatch, 3)
    model, kept = build(name), []
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def note(saved: Tensor) -> Tensor:
        if VOCABULARY in saved.shape and saved.untyped_storage().data_ptr() not in weights:
            kept.append(saved.numel() // VOCABULARY)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(note, lambda saved: saved):
        logps = response_logps(model, batch)
        assert sum(kept) <= len(batch.role), "one row a response: the model's own head, kept to one position"
        logits = model(input_ids=batch.tokens.input_ids).logits.log_softmax(-1)
    assert sum(kept) >= logits.numel() // VOCABULARY, "the watch does see logits where they are kept"
    assert logps.requires_grad


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "granite, scaled"])
def test_kl_divergence_is_exact(name, chunk, batch, rows):
    policy, reference = build(name), build(name, seed=5)
    found = kl_divergence(policy, hidden_states(policy, batch), reference, hidden_states(reference, batch))
    log_p = torch.cat([logits.log_softmax(-1) for logits, _ in logits_one_by_one(policy, rows)])
    log_q = torch.cat([logits.log_softmax(-1) for logits, _ in logits_one_by_one(reference, rows)])
    expected = (log_p.exp() * (log_p - log_q)).sum(-1)
    assert found.shape == batch.targets.shape and not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-4, atol=1e-5)
    other_way = (log_q.exp() * (log_q - log_p)).sum(-1)
    assert (found - other_way).abs().max() > 1e-3, "models too alike to tell the direction"


def test_kl_divergence_of_equal_models_is_zero(chunk, batch):
    policy, reference = build("llama"), build("llama")
    found = kl_divergence(policy, hidden_states(policy, batch), reference, hidden_states(reference, batch))
    assert found.abs().max() < 1e-6


def test_kl_divergence_by_hand():
    """p = (1/2, 1/4, 1/4), q = (1/4, 1/2, 1/4): KL = 1/2 log 2 - 1/4 log 2 = log(2) / 4 = 0.1732868 nats."""

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = transformers.LlamaConfig(vocab_size=3)
            self.head = nn.Identity()  # hidden states are the logits

        def get_output_embeddings(self):
            return self.head

    p, q = torch.tensor([[0.5, 0.25, 0.25]]).log(), torch.tensor([[0.25, 0.5, 0.25]]).log()
    assert kl_divergence(Fixed(), p + 7, Fixed(), q - 2).tolist() == pytest.approx([0.1732868], abs=1e-6)
