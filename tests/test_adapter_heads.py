"""LoRA on single heads: nothing of any other head moves, in training and in what is saved; what is refused."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from align import adapter_heads, models, recipe
from align.errors import UserError
from align.recipe import Adapter
from tests import tiny
from tests.commands import TWO_RANKS, assert_same_course, train
from tests.test_likra_runs import trained_here

RECIPE = """
name: heads
model:     {{path: {model}, adapter: {{rank: 4, heads: [L0H1, L1H3, L1H0]{more}}}}}
data:      {{sources: [{data}], max_length: 128}}
objective: {{name: simpo}}
train:     {{learning_rate: 0.1, max_steps: 6, prompts_per_step: 8, tokens_per_device: 700, seed: 3, precision: fp32,
            hf: {{weight_decay: 0.1}}}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""


def written(folder, model, data, more=""):
    file = folder / "heads.yaml"
    file.write_text(RECIPE.format(model=model, data=data, more=more))
    return file


@pytest.fixture(scope="module")
def run(tiny_model, uneven_rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    return trained_here(written(folder, tiny_model, uneven_rows), folder / "run")


def test_only_the_heads_move(run, tiny_model):
    """In the weights that PEFT, which knows nothing of heads, merges."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), run / "final")
    weights = dict(merged.merge_and_unload().named_parameters())
    size = 8  # rows of the query, and columns of the output, of a head
    for name, before in base.named_parameters():
        moved = (weights[name] - before).abs() > 1e-7
        layer = int(name.split(".")[2]) if "layers" in name else None
        chosen = {0: [1], 1: [0, 3]}.get(layer, [])
        for head in range(4):
            at = slice(head * size, (head + 1) * size)
            if "q_proj" in name:
                assert moved[at].any() == (head in chosen), (name, head)
            elif "o_proj" in name:
                assert moved[:, at].any() == (head in chosen), (name, head)
        assert moved.any() == (("q_proj" in name or "o_proj" in name) and bool(chosen)), name


@pytest.mark.slow
def test_two_ranks_equal_one(run, tiny_model, uneven_rows, tmp_path):
    train(TWO_RANKS, written(tmp_path, tiny_model, uneven_rows), f"output={tmp_path / 'two'}")
    assert_same_course(run, tmp_path / "two")


def test_mistakes_are_told(tiny_model, uneven_rows, tmp_path, monkeypatch):
    def refused(more: str) -> str:
        with pytest.raises(UserError) as error:
            recipe.load(written(tmp_path, tiny_model, uneven_rows, more), ["output=x"])
        return str(error.value)

    assert "model.adapter.targets: names modules beside" in refused(", targets: [q_proj]")
    with pytest.raises(UserError, match="'L1' names no head; write L12H3"):
        adapter_heads.parse(["L1"])
    for heads, message in ((["L2H0"], "no L2H0: the model has 2 layers of 4 heads"), (["L0H4"], "no L0H4")):
        with pytest.raises(UserError, match=message):
            models.add_adapter(tiny.llama(), Adapter(heads=heads), 0)
    with pytest.raises(UserError, match="cannot be told apart"):
        adapter_heads.modules(torch.nn.Linear(2, 2), ["L0H0"])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="never been tried under DeepSpeed"):
        models.add_adapter(tiny.llama(), Adapter(heads=["L0H0"]), 0)
