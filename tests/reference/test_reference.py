"""Who the reference is: the policy without its adapter, a frozen copy, another one for the samples."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from align.data.collate import MicroBatch, collate
from align.objectives import SAMPLE
from align.reference import ADAPTER_OFF, FROZEN, References, freeze
from align.scoring.logprobs import response_logps
from tests import tiny

PAD = 258


def with_adapter(*, dropout: float = 0.0) -> nn.Module:
    """The tiny Llama with LoRA matrices of which none is 0."""
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], lora_dropout=dropout, task_type="CAUSAL_LM")
    model = get_peft_model(tiny.llama(attention_dropout=dropout), config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    return model


@pytest.fixture(scope="module")
def batch() -> MicroBatch:
    """Two prompts with positives, negatives and samples of unequal length, in mixed order."""
    rows = [
        tiny.row("Why?", positives=["Because."], negatives=["No idea at all."], samples=["So", "Because it is."]),
        tiny.row("And where is it?", negatives=["Gone."], samples=["Over there."]),
    ]
    return collate(rows, PAD)


def score(model: nn.Module, batch: MicroBatch) -> Tensor:
    with torch.no_grad():
        return response_logps(model.eval(), batch)


def test_adapter_off_is_the_base_model(batch):
    policy = with_adapter()
    found = References(ADAPTER_OFF, None, {}).logps(policy, batch)
    assert torch.equal(found, score(tiny.llama(), batch))
    assert (found - score(policy, batch)).abs().max() > 0.1, "the adapter must matter"


def test_adapter_is_on_again_afterwards(batch):
    policy = with_adapter()
    before, trained = score(policy, batch), [weight.requires_grad for weight in policy.parameters()]
    References(ADAPTER_OFF, None, {}).logps(policy, batch)
    assert torch.equal(score(policy, batch), before)
    assert [weight.requires_grad for weight in policy.parameters()] == trained and any(trained)


def test_dropout_of_a_training_policy_does_not_reach_its_reference(batch):
    policy = with_adapter(dropout=0.5).train()
    assert (response_logps(policy, batch) - score(with_adapter(), batch)).abs().max() > 0.1, "dropout must matter"
    assert torch.equal(References(ADAPTER_OFF, None, {}).logps(policy, batch), score(tiny.llama(), batch))


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_restored(training, batch):
    policy = with_adapter().train(training)
    References(ADAPTER_OFF, None, {}).logps(policy, batch)
    assert all(module.training is training for module in policy.modules())


@pytest.mark.parametrize("training", [True, False])
def test_all_is_restored_if_the_block_raises(training, batch):
    policy = with_adapter()
    before = score(policy, batch)
    policy.train(training)
    with (
        pytest.raises(RuntimeError, match="out of memory"),
        References(ADAPTER_OFF, None, {}).model(ADAPTER_OFF, policy) as reference,
    ):
        assert torch.equal(response_logps(reference, batch), score(tiny.llama(), batch))
        raise RuntimeError("out of memory")
    mode = policy.training
    assert torch.equal(score(policy, batch), before)
    assert mode is training


def test_adapter_off_under_a_wrapper(batch):
    """DDP and DeepSpeed hold the policy as `module`; the reference is scored through them."""
    wrapped = tiny.Wrapper(with_adapter()).train()
    found = References(ADAPTER_OFF, None, {}).logps(wrapped, batch)
    assert torch.equal(found, score(tiny.llama(), batch))
    assert wrapped.calls == 1 and wrapped.training and wrapped.module.training


@pytest.mark.parametrize("who", [ADAPTER_OFF, FROZEN])
def test_no_gradient(who, batch):
    policy = with_adapter()
    found = References(who, None, {FROZEN: tiny.llama(seed=5)}).logps(policy, batch)
    assert not found.requires_grad and found.dtype == torch.float32
    assert (found[~batch.mask] == 0).all() and (found[batch.mask] < 0).all()
    response_logps(policy, batch).sum().backward()
    assert any(weight.grad is not None for weight in policy.parameters()), "the policy's own gradient goes on"


def test_frozen_is_another_model_and_stays_as_it_is(batch):
    frozen = freeze(tiny.llama(seed=5).train())
    assert not frozen.training and not any(weight.requires_grad for weight in frozen.parameters())
    references, policy = References(FROZEN, None, {FROZEN: frozen}), with_adapter().train()
    before = references.logps(policy, batch)
    assert torch.equal(before, score(tiny.llama(seed=5), batch))
    for weight in policy.parameters():
        weight.data += 1.0
    assert torch.equal(references.logps(policy, batch), before)
    assert policy.training


def only(batch: MicroBatch, samples: bool) -> MicroBatch:
    return batch.select((batch.role == SAMPLE) == samples)


PAIRS = [(ADAPTER_OFF, FROZEN), (FROZEN, ADAPTER_OFF), (FROZEN, "second")]


@pytest.mark.parametrize("policy_reference, samples_reference", PAIRS)
@pytest.mark.parametrize("roles", ["both", "samples", "others"])
def test_two_references_by_role(roles, policy_reference, samples_reference, batch):
    """Samples under one, the rest under the other: equal to scoring each response alone, also if a role is missing."""
    if roles != "both":
        batch = only(batch, samples=roles == "samples")
    assert roles != "both" or {True, False} == set((batch.role == SAMPLE).tolist())
    models = {FROZEN: freeze(tiny.llama(seed=5)), "second": freeze(tiny.llama(seed=6))}
    scores = {name: score(model, batch) for name, model in {**models, ADAPTER_OFF: tiny.llama()}.items()}
    is_sample = (batch.role == SAMPLE)[:, None]
    expected = torch.where(is_sample, scores[samples_reference], scores[policy_reference])
    found = References(policy_reference, samples_reference, models).logps(with_adapter(), batch)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    others = torch.where(is_sample, scores[policy_reference], scores[samples_reference])
    assert (found - others).abs().max() > 0.1, "swapped references must show"


@pytest.mark.parametrize("roles", ["both", "samples", "others"])
@pytest.mark.parametrize("equal_calls", [True, False])
def test_which_references_are_called(roles, equal_calls, batch):
    """Under ZeRO-3 each one once, whatever roles a rank's batch has: it waits for ranks that do not call."""
    if roles != "both":
        batch = only(batch, samples=roles == "samples")
    models, calls = {FROZEN: tiny.llama(seed=5), "second": tiny.llama(seed=6)}, []
    for name, model in models.items():
        model.register_forward_hook(lambda *_, name=name: calls.append(name))
    references = References(FROZEN, "second", models, equal_calls=equal_calls)
    references.logps(with_adapter(), batch)
    needed = {"both": [FROZEN, "second"], "samples": ["second"], "others": [FROZEN]}[roles]
    assert sorted(calls) == ([FROZEN, "second"] if equal_calls else needed)
    assert references.forwards == len(calls)


def test_the_same_reference_for_all_is_called_once(batch):
    frozen, calls = tiny.llama(seed=5), []
    frozen.register_forward_hook(lambda *_: calls.append(1))
    found = References(FROZEN, FROZEN, {FROZEN: frozen}).logps(with_adapter(), batch)
    assert calls == [1]
    assert torch.equal(found, score(frozen, batch))
