"""Points between base and policy: by hand, and as whole models that other libraries load."""

from __future__ import annotations

import shutil

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.errors import UserError
from align.evaluation import subject
from align.repair import interpolate
from align.repair.interpolate import Line

IDS = torch.arange(3, 40)[None]


def test_points_by_hand():
    """BCWI's formula, whose b = 1 - a is the weight of the old model: (b F old + (1 - b) new) / (b F + 1 - b)."""
    old, new, fisher = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, 3.0, 3.0]), torch.tensor([0.0, 1.0, 2.0])
    weight = nn.Parameter(new.clone())
    plain = Line({"w": weight}, {"w": old}, {"w": new})
    weighted = Line({"w": weight}, {"w": old}, {"w": new}, {"w": fisher})
    for a, by_plain, by_fisher in (
        (0.0, [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),  # F = 0 there is 0 / 0 in the formula: the base
        (0.25, [1.5, 1.5, 1.5], [3.0, 1.5, (0.75 * 2 * 1 + 0.25 * 3) / (0.75 * 2 + 0.25)]),
        (1.0, [3.0, 3.0, 3.0], [3.0, 3.0, 3.0]),
    ):
        plain.go_to(a)
        torch.testing.assert_close(weight.detach(), torch.tensor(by_plain))
        weighted.go_to(a)
        torch.testing.assert_close(weight.detach(), torch.tensor(by_fisher))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def written(run, folder, a: float, **how) -> None:
    models = subject.load(run, **how)
    line = interpolate.line(models)
    line.go_to(a)
    interpolate.write(models, str(run), folder, {"a": a})


@pytest.mark.parametrize("a", [0.0, 0.4, 1.0])
def test_a_scaled_adapter_is_the_interpolated_model(a, lora_run, tiny_model, tmp_path):
    """Loaded by peft and by transformers, neither of which knows of us; by a loop over the weights; and in full."""
    written(lora_run, tmp_path / "adapter", a)
    written(lora_run, tmp_path / "full", a, is_whole=True)

    def base() -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(tiny_model)

    expected, policy = base(), PeftModel.from_pretrained(base(), lora_run / "final").merge_and_unload()
    others = dict(policy.named_parameters())
    with torch.no_grad():
        for name, weight in expected.named_parameters():
            weight.copy_((1 - a) * weight + a * others[name])
    adapter = PeftModel.from_pretrained(base(), tmp_path / "adapter")
    full = AutoModelForCausalLM.from_pretrained(tmp_path / "full")
    assert (logits(base()) - logits(policy)).abs().max() > 0.5, "the run has moved far"
    torch.testing.assert_close(logits(adapter), logits(expected), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits(full), logits(expected), rtol=0, atol=1e-4)
    assert AutoTokenizer.from_pretrained(tmp_path / "full")("a")["input_ids"]
    assert not (tmp_path / "adapter" / "model.safetensors").exists()


def test_all_weights_of_a_full_run_are_interpolated(full_run, tiny_model, tmp_path):
    written(full_run, tmp_path / "merged", 0.25)
    base, policy, merged = (
        dict(AutoModelForCausalLM.from_pretrained(folder).named_parameters())
        for folder in (tiny_model, full_run / "final", tmp_path / "merged")
    )
    moved = {name for name in base if not torch.equal(base[name], policy[name])}
    assert any("norm" in name for name in moved) and any("q_proj" in name for name in moved)
    for name, weight in merged.items():
        torch.testing.assert_close(weight, 0.75 * base[name] + 0.25 * policy[name], rtol=0, atol=1e-6)


def test_what_cannot_be_interpolated(full_run, tiny_model, tmp_path):
    same = tmp_path / "run"
    shutil.copytree(full_run, same)
    shutil.rmtree(same / "final")
    shutil.copytree(tiny_model, same / "final")
    with pytest.raises(UserError, match="is its base, weight for weight"):
        interpolate.line(subject.load(same))
    models = subject.load(full_run)
    with pytest.raises(UserError, match="no policy that could be interpolated"):
        interpolate.line(models.without(subject.POLICY))
