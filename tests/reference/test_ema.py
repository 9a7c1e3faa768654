"""Running means of the policy: the update by hand, whose log-probs they give, and that the policy never notices."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from align.data.collate import MicroBatch, collate
from align.reference import ema
from align.reference.ema import RunningMeans
from align.scoring.logprobs import response_logps
from tests import tiny

PAD = 258


def with_adapter(*, dropout: float = 0.0) -> nn.Module:
    """The tiny Llama with LoRA matrices of which none is 0."""
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=dropout, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(tiny.llama(), config).eval()
    move(model, seed=1)
    return model


def move(policy: nn.Module, seed: int) -> None:
    """Stands in for an optimiser step: every trained weight goes elsewhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight += 0.3 * torch.randn(weight.shape, generator=generator)


def trained(policy: nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.named_parameters() if weight.requires_grad}


@pytest.fixture(scope="module")
def batch() -> MicroBatch:
    """Two prompts with responses of unequal length."""
    rows = [
        tiny.row("Why?", positives=["Because."], negatives=["No idea at all."]),
        tiny.row("And where is it?", negatives=["Gone."]),
    ]
    return collate(rows, PAD)


def score(policy: nn.Module, batch: MicroBatch) -> Tensor:
    with torch.no_grad():
        return response_logps(policy, batch)


class Single(nn.Module):
    """One trained weight of 8 and one frozen of 5."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([8.0]))
        self.base = nn.Parameter(torch.tensor([5.0]), requires_grad=False)


def test_update_by_hand():
    """Policy 8, then 4, then 16. Decay 3/4: 3/4 8 + 1/4 4 = 7, 3/4 7 + 1/4 16 = 9.25. Decay 1/2: 6, then 11.
    Decay 0 is the policy itself, decay 1 never moves."""
    policy = Single()
    means = RunningMeans(policy, [0.75, 0.5, 0.0, 1.0])
    found = []
    for value in (4.0, 16.0):
        policy.weight.data.fill_(value)
        means.update()
        found.append([copy["weight"].item() for copy in means.copies])
    assert found == [[7.0, 6.0, 4.0, 8.0], [9.25, 11.0, 16.0, 8.0]]
    assert policy.weight.item() == 16.0 and policy.base.item() == 5.0


def test_means_have_no_gradient_and_are_tensors_of_their_own():
    policy = Single()
    means = RunningMeans(policy, [0.5, 0.5])
    means.update()
    assert not any(copy["weight"].requires_grad for copy in means.copies)
    places = {policy.weight.data_ptr(), *(copy["weight"].data_ptr() for copy in means.copies)}
    assert len(places) == 3


@pytest.mark.parametrize("build", [tiny.llama, with_adapter])
def test_begin_as_the_policy(build, batch):
    policy = build()
    means = RunningMeans(policy, [0.9, 0.99])
    expected = score(policy, batch)
    found = means.logps(policy, batch)
    assert found.shape == (2, *batch.mask.shape) and found.dtype == torch.float32
    assert torch.equal(found, expected.expand_as(found))
    move(policy, seed=2)
    assert torch.equal(means.logps(policy, batch), found), "they stay behind until they are updated"
    assert (score(policy, batch) - expected).abs().max() > 0.1, "the policy must have moved"


@pytest.mark.parametrize("build", [tiny.llama, with_adapter])
@pytest.mark.parametrize("decays", [(0.5,), (0.9, 0.0), (0.2, 0.5, 0.8)])
def test_logps_are_those_of_a_model_with_these_weights(build, decays, batch):
    """After two steps; the mean of weights is no mean of log-probs, so each model is built and asked."""
    policy = build()
    passed = [trained(policy)]
    means = RunningMeans(policy, decays)
    for seed in (2, 3):
        move(policy, seed)
        passed.append(trained(policy))
        means.update()
    found = means.logps(policy, batch)
    assert found.shape == (len(decays), *batch.mask.shape) and not found.requires_grad
    assert (found[:, ~batch.mask] == 0).all() and (found[:, batch.mask] < 0).all()
    for decay, logps in zip(decays, found, strict=True):
        other = build()
        factors = [decay**2, decay * (1 - decay), 1 - decay]
        with torch.no_grad():
            for name, weight in other.named_parameters():
                if weight.requires_grad:
                    weight.copy_(sum(f * step[name] for f, step in zip(factors, passed, strict=True)))
        torch.testing.assert_close(logps, score(other, batch), rtol=1e-4, atol=1e-4)
        if decay:
            assert (logps - score(policy, batch)).abs().max() > 0.1, "too near to the policy to tell"


def test_only_trained_weights_are_kept():
    policy = with_adapter()
    means = RunningMeans(policy, [0.9, 0.99])
    names = {name for name, _ in policy.named_parameters() if "lora_" in name}
    assert len(names) == 8 and len(means.copies) == 2
    assert all(copy.keys() == names for copy in means.copies)


def state(policy: nn.Module) -> dict[str, tuple[int, int, Tensor]]:
    """name -> (which parameter, where its values lie, its values)."""
    return {name: (id(w), w.data_ptr(), w.detach().clone()) for name, w in policy.named_parameters()}


def assert_untouched(policy: nn.Module, before: dict[str, tuple[int, int, Tensor]]) -> None:
    after = state(policy)
    assert after.keys() == before.keys()
    for name, (which, place, values) in before.items():
        assert after[name][:2] == (which, place), f"{name} is another tensor"
        assert torch.equal(after[name][2], values), f"{name} has other values"


@pytest.mark.parametrize("build", [tiny.llama, with_adapter])
def test_policy_is_as_before(build, batch):
    policy = build()
    means = RunningMeans(policy, [0.5, 0.9])
    move(policy, seed=2)
    before, own = state(policy), score(policy, batch)
    kept = [trained_values(copy) for copy in means.copies]
    assert (means.logps(policy, batch) - own).abs().max() > 0.1, "the means must matter"
    assert_untouched(policy, before)
    assert torch.equal(score(policy, batch), own)
    assert all(
        torch.equal(copy[name], values[name]) for copy, values in zip(means.copies, kept, strict=True) for name in copy
    )


def trained_values(copy: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.clone() for name, values in copy.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("call", [1, 2])
def test_policy_is_as_before_if_scoring_fails(call, training, batch, monkeypatch):
    """Under the first mean or the second."""
    policy = with_adapter().train(training)
    means = RunningMeans(policy, [0.5, 0.9])
    move(policy, seed=2)
    before, calls = state(policy), []

    def fails(model, scored):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("out of memory")
        return response_logps(model, scored)

    monkeypatch.setattr(ema, "response_logps", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        means.logps(policy, batch)
    assert len(calls) == call
    assert_untouched(policy, before)
    assert all(module.training is training for module in policy.modules())


def test_policy_goes_on_learning(batch):
    """A pass under gradient before the means were asked can still be learned from, one after it too."""
    policy = with_adapter()
    means = RunningMeans(policy, [0.5])
    move(policy, seed=2)
    response_logps(policy, batch).sum().backward()
    expected = {name: w.grad.clone() for name, w in policy.named_parameters() if w.grad is not None}
    for when in ("before", "after"):
        policy.zero_grad()
        if when == "before":
            logps = response_logps(policy, batch)
            means.logps(policy, batch)
        else:
            means.logps(policy, batch)
            logps = response_logps(policy, batch)
        logps.sum().backward()
        found = {name: w.grad for name, w in policy.named_parameters() if w.grad is not None}
        assert found.keys() == expected.keys() and len(found) == 8
        assert all(torch.equal(found[name], expected[name]) for name in found), when


def test_dropout_does_not_reach_the_means(batch):
    """The trainer asks while the policy trains. A policy with dropout is judged by means without, as by references."""
    policy = with_adapter(dropout=0.5)
    means = RunningMeans(policy, [0.5])
    expected = score(policy, batch)
    policy.train()
    assert (score(policy, batch) - expected).abs().max() > 0.1, "dropout must matter"
    assert torch.equal(means.logps(policy, batch)[0], expected)
    assert all(module.training for module in policy.modules())


def test_asked_through_a_wrapper(batch):
    """DDP holds the policy as `module`; its own forward must run."""
    policy = with_adapter()
    means, wrapped = RunningMeans(policy, [0.5, 0.9]), tiny.Wrapper(policy).eval()
    expected = score(policy, batch)
    move(policy, seed=2)
    assert torch.equal(means.logps(wrapped, batch), expected.expand(2, -1, -1))
    assert wrapped.calls == 2


@pytest.mark.parametrize("asked", ["update", "logps"])
def test_follow_a_policy_that_is_moved_after_they_were_made(asked, batch, monkeypatch):
    """The trainer takes the policy to its device when the means exist already; the meta device stands in for it."""
    policy, seen = Single(), []
    means = RunningMeans(policy, [0.75, 0.5])
    means.live["weight"] = policy.weight = nn.Parameter(torch.empty(1, device="meta"))
    monkeypatch.setattr(ema, "response_logps", lambda *_: seen.append(policy.weight.device.type) or torch.zeros(1))
    if asked == "update":
        means.update()
    else:
        means.logps(policy, batch)
        assert seen == ["meta", "meta"]
    assert [copy["weight"].device.type for copy in means.copies] == ["meta", "meta"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_follow_a_policy_to_the_gpu(batch):
    policy = with_adapter()
    means = RunningMeans(policy, [0.5])
    policy.to("cuda")
    means.update()
    found = means.logps(policy, batch.to(torch.device("cuda")))
    assert found.device.type == "cuda"


def test_saved_and_loaded_bit_by_bit(batch, tmp_path):
    decays, file = (0.9, 0.3), tmp_path / "means.safetensors"
    policy = with_adapter()
    means = RunningMeans(policy, decays)
    move(policy, seed=2)
    means.update()
    means.save(file)
    resumed_policy = with_adapter()
    move(resumed_policy, seed=2)
    resumed = RunningMeans(resumed_policy, decays)
    assert not torch.equal(resumed.logps(resumed_policy, batch), means.logps(policy, batch)), "nothing to load"
    resumed.load(file)
    for _ in range(2):
        for copy, other in zip(means.copies, resumed.copies, strict=True):
            assert copy.keys() == other.keys()
            assert all(copy[name].dtype == other[name].dtype for name in copy)
            assert all(torch.equal(copy[name], other[name]) for name in copy)
        for one, its in ((policy, means), (resumed_policy, resumed)):  # and they go on alike
            move(one, seed=3)
            its.update()
    assert torch.equal(resumed.logps(resumed_policy, batch), means.logps(policy, batch))
    assert not torch.equal(
        means.copies[0]["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"],
        means.copies[1]["base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight"],
    )
