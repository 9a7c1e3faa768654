"""What is traced without values is what torch's allocator hands out when the same passes are made with them."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from align import models, recipe
from align.data.collate import MicroBatch, collate
from align.data.examples import Example
from align.data.layout import ALL, CHEAP, NONE, PACKED, PADDED
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.planning.tracing import ACTIVATIONS, GRADIENTS, HEAD, WEIGHTS, EmptyModel, LiveBytes
from align.recipe import Adapter, Model
from align.scoring import recompute, support
from align.scoring.head import causal_lm
from align.view import Scorer
from tests import tiny

SIZE = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4, "vocab_size": 2000}


def batch_of(layout: str, mode: str) -> MicroBatch:
    answers = [tuple(TokenizedResponse((1,) * length, 1) for length in lengths) for lengths in ((60, 90), (130,))]
    rows = [
        TokenizedRow((1,) * prompt, own, Example("", (), "", "")) for prompt, own in zip((70, 40), answers, strict=True)
    ]
    return dataclasses.replace(collate(rows, 0, layout), recompute=mode)


def made(model, rank: int | None, layout: str):
    if rank:
        model = models.add_adapter(model, Adapter(rank=rank), seed=0)
    recompute.prepare(model)
    if layout == PACKED:
        assert support.use_packed(model, 512, has_weights=next(model.parameters()).device.type != "meta") is None
    return model.train()


def scorer(name: str = "dpo") -> Scorer:
    return Scorer(recipe.objectives.load(name)(), None, None, 0)


def allocated(model, batch: MicroBatch, name: str) -> int:
    """Most bytes beside weights and gradients that torch's allocator had handed out, by its own count."""

    def train() -> None:
        logps, extras = scorer(name).policy(model, batch, 0)
        sum((one * batch.mask).sum() for one in (logps, *extras.values())).backward()

    train()  # leaves gradients, and whatever is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        train()
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("mode", [NONE, CHEAP, ALL])
@pytest.mark.parametrize(("rank", "layout"), [(None, PACKED), (8, PACKED), (None, PADDED)])
def test_the_peak_is_the_allocators(rank, layout, mode):
    assert_peak_is_the_allocators(rank, layout, mode, "dpo")


@pytest.mark.parametrize("name", ["cringe", "unlikelihood", "nsr"])
def test_the_peak_with_what_else_is_read_off_the_logits(name):
    assert_peak_is_the_allocators(None, PACKED, NONE, name)


def assert_peak_is_the_allocators(rank: int | None, layout: str, mode: str, name: str) -> None:
    batch = batch_of(layout, mode)
    real = allocated(made(tiny.llama(**SIZE), rank, layout), batch, name)
    with torch.device("meta"):
        empty = tiny.llama(**SIZE)
    live = EmptyModel(made(empty, rank, layout), bf16=False).train(batch, scorer(name), accumulates=True)
    # Kernels' own buffers are not traced: blocks of attention, packed operands of products.
    assert live.most_passing == pytest.approx(real, rel=0.07)
    assert live.peak[ACTIVATIONS] + live.peak[HEAD] == pytest.approx(live.most_passing, rel=0.02)


def test_weights_and_gradients_are_counted_by_their_number():
    with torch.device("meta"):
        empty = tiny.llama()
    numbers = sum(weight.numel() for weight in empty.parameters())
    live = EmptyModel(made(empty, None, PADDED), bf16=False).train(batch_of(PADDED, NONE), scorer(), accumulates=True)
    assert live.peak[GRADIENTS] == numbers * 4
    assert live.peak[WEIGHTS] == pytest.approx(numbers * 4, rel=0.01)  # and the rotations' few


def test_of_a_first_micro_batch_no_gradients_are_there_before():
    with torch.device("meta"):
        empty = tiny.llama(**SIZE)
    model = EmptyModel(made(empty, None, PACKED), bf16=False)
    first, later = (model.train(batch_of(PACKED, NONE), scorer(), accumulates=later) for later in (False, True))
    assert first.peak.total() < later.peak.total()
    assert first.peak[GRADIENTS] < later.peak[GRADIENTS] == sum(w.numel() for w in model.policy.parameters()) * 4


def test_measuring_holds_logits_of_a_chunk():
    with torch.device("meta"):
        empty = tiny.llama(**SIZE)
    model = EmptyModel(made(empty, None, PACKED), bf16=False)
    without, with_kl = (model.measure(batch_of(PACKED, NONE), has_kl=has_kl) for has_kl in (False, True))
    logits = 280 * 2000 * 4  # all response tokens fit a chunk
    assert 2 * logits < without.most_passing < with_kl.most_passing < 9 * logits
    assert with_kl.peak[GRADIENTS] == 0


def test_bytes_come_and_go_and_views_are_not_counted_twice():
    fake = FakeTensorMode()
    live = LiveBytes(fake)
    with fake, live:
        one = torch.empty(10, 10)
        other = one + 1
        view = other.view(100)[5:]
        assert live.now.total() == 800
        del one, other
        assert live.now.total() == 400
        live.see(view, GRADIENTS)
        assert dict(live.now) == {ACTIVATIONS: 0, GRADIENTS: 400}
        del view
    assert live.now.total() == 0
    assert live.peak.total() == 800


def test_tensors_with_values_keep_them():
    fake, ids = FakeTensorMode(allow_non_fake_inputs=True), torch.tensor([3, 1, 2])
    with fake, LiveBytes(fake):
        table = torch.empty(5, 7)
        assert int(ids.max()) == 3 and (ids + 1).tolist() == [4, 2, 3]
        assert table[ids].shape == (3, 7)


def test_an_empty_model_is_the_real_one_without_values(tiny_model):
    model = Model(path=str(tiny_model))
    empty, real = models.empty_model(model, dtype=torch.bfloat16), models.load_model(model, dtype=torch.bfloat16)
    shapes = {name: (weight.shape, weight.dtype) for name, weight in real.named_parameters()}
    assert {name: (weight.shape, weight.dtype) for name, weight in empty.named_parameters()} == shapes
    assert {weight.device.type for weight in empty.parameters()} == {"meta"}
    assert causal_lm(empty) is empty
