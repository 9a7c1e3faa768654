"""What the backward pass computes again changes neither values nor gradients, only what is held and multiplied."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from align.data.collate import MicroBatch, collate
from align.data.layout import ALL, CHEAP, NONE, PACKED, PADDED, ROOM
from align.scoring.logprobs import response_logps
from align.scoring.recompute import prepare
from tests.scoring.families import build, ready, some_rows

PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.align.tree_attention.default)


class Watched(TorchDispatchMode):
    """Counts the products, and knows of each result that is no view of a weight whether it is still held."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.products, self.held = Counter(), {}
        self.weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        found = operation(*args, **(kwargs or {}))
        self.products[operation] += operation in PRODUCTS
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            if storage.data_ptr() not in self.weights:
                self.held[storage.data_ptr()] = StorageWeakRef(storage), storage.nbytes()
        return found

    def bytes_held(self) -> int:
        return sum(size for storage, size in self.held.values() if not storage.expired())


def trained(model: nn.Module, batch: MicroBatch, mode: str) -> tuple[torch.Tensor, dict, Watched, Watched]:
    """Log-probs, gradients, and what was seen of the forward and of the backward pass."""
    assert prepare(model.train())
    batch = dataclasses.replace(batch, recompute=mode)
    forward, backward = Watched(model), Watched(model)
    with forward:
        logps = response_logps(model, batch)
    forward.held = forward.bytes_held()
    with backward:
        logps.sum().backward()
    gradients = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return logps, gradients, forward, backward


@pytest.mark.parametrize("layout", [PACKED, PADDED])
@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2, soft-capped", "mistral", "lora", "lora on the head"])
def test_same_values_and_gradients(name, layout):
    batch = collate(some_rows(), 0, layout)
    found = {mode: trained(ready(build(name)), batch, mode) for mode in ROOM}
    assert found[NONE][1]
    for mode in (CHEAP, ALL):
        torch.testing.assert_close(found[mode][0], found[NONE][0], rtol=0, atol=0)
        assert found[mode][1].keys() == found[NONE][1].keys()
        for weight, gradient in found[NONE][1].items():
            torch.testing.assert_close(found[mode][1][weight], gradient, rtol=0, atol=0)


def test_cheap_multiplies_no_more_and_holds_half():
    batch = collate(some_rows(), 0, PACKED)
    found = {
        mode: trained(ready(build("llama", num_hidden_layers=12, intermediate_size=86)), batch, mode)[2:]
        for mode in ROOM
    }
    products = {mode: forward.products + backward.products for mode, (forward, backward) in found.items()}
    assert sum(products[NONE].values()) > 100
    assert products[CHEAP] == products[NONE]
    assert sum(products[ALL].values()) > 1.2 * sum(products[NONE].values())
    held = {mode: forward.held for mode, (forward, _) in found.items()}
    assert held[CHEAP] < 0.6 * held[NONE]
    assert held[ALL] < 0.2 * held[NONE]


def test_models_that_cannot_are_told():
    model = build("llama")
    type(model).supports_gradient_checkpointing, before = False, type(model).supports_gradient_checkpointing
    try:
        assert not prepare(model)
        assert response_logps(model, collate(some_rows(), 0, PADDED)).requires_grad
    finally:
        type(model).supports_gradient_checkpointing = before
