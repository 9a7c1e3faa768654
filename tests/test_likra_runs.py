"""Likra runs: ranks, micro-batches, layouts, heads, and a killed run that goes on; by the command line where needed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align import job
from align.likelihood_ratio import LikelihoodRatioModel
from align.recipe import load as load_recipe
from tests.commands import (
    TRAIN,
    TWO_RANKS,
    assert_same_course,
    deepspeed,
    kill_after_step,
    losses,
    metrics,
    start,
    train,
    trained,
)

SMALL = 700  # tokens_per_device: a few rows in each micro-batch

RECIPE = """
name: likra-runs
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{data}], max_length: 128}}
objective: {{name: {objective}}}
train:     {{learning_rate: 1.0e-2, max_steps: 6, prompts_per_step: 8, tokens_per_device: 100000, seed: 3,
            precision: fp32, hf: {{max_grad_norm: 1000}}}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""


@pytest.fixture(scope="module")
def recipe(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "likra.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, objective="likra"))
    return file


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory) -> Path:
    return trained_here(recipe, tmp_path_factory.mktemp("runs") / "one", "train.snapshots=true")


def trained_here(file: Path, output: Path, *settings: str) -> Path:
    """The run folder of a recipe that was run to its end in this process."""
    threads = torch.get_num_threads()
    job.train(load_recipe(file, [f"output={output}", *settings]))
    torch.set_num_threads(threads)
    return output


def weights(folder: Path, head: str) -> dict[str, torch.Tensor]:
    return load_file(folder / head / "adapter_model.safetensors")


def assert_same_weights(one: dict, other: dict, tolerance: float) -> None:
    assert one.keys() == other.keys() and len(one) > 20
    assert any(values.abs().max() > 0.01 for name, values in one.items() if "lora_B" in name), "it has learned"
    for name, values in one.items():
        torch.testing.assert_close(values, other[name], rtol=0, atol=tolerance)


def test_a_finished_run_loads_with_one_call(one_process):
    ratio = LikelihoodRatioModel.from_pretrained(one_process, arithmetic="fp32")
    logps = ratio.logps("the cat number 3?", ["the cat sat", "by the river"])
    assert (logps["positive"] - logps["negative"]).abs().max() > 0.1
    assert [path.name for path in sorted((one_process / "final").iterdir()) if path.is_dir()] == [
        "negative",
        "positive",
    ]
    first = metrics(one_process)[0]
    assert first["loss"] == pytest.approx(-first["logps/positive"] - first["logps/negative"], abs=1e-5)


def test_snapshots_are_taken_at_powers_of_two(recipe, one_process, tmp_path):
    """Under a constant learning rate one is what a run on that many prompts ends with."""
    folders = sorted(path.name for path in (one_process / "snapshots").iterdir())
    assert folders == ["prompts-16", "prompts-32", "prompts-8"]
    constant = "train.hf.lr_scheduler_type=constant"
    longer = trained_here(recipe, tmp_path / "longer", constant, "train.snapshots=true")
    short = trained_here(recipe, tmp_path / "short", constant, "train.max_steps=4")
    for head in ("positive", "negative"):
        assert_same_weights(weights(longer / "snapshots" / "prompts-32", head), weights(short / "final", head), 0.0)
    LikelihoodRatioModel.from_pretrained(longer / "snapshots" / "prompts-32")


def assert_same_run(one: Path, other: Path, besides: frozenset[str] = frozenset()) -> None:
    assert_same_course(other, one, besides=besides)
    for head in ("positive", "negative"):
        assert_same_weights(weights(one / "final", head), weights(other / "final", head), 1e-5)


@pytest.mark.parametrize(
    "settings",
    [["train.recompute=all"], ["train.recompute=none"], ["data.layout=padded"]],
    ids=["recomputed", "held", "padded"],
)
def test_accumulated_equals_one_micro_batch(settings, recipe, one_process, tmp_path):
    run = trained_here(recipe, tmp_path / "run", f"train.tokens_per_device={SMALL}", *settings)
    assert_same_run(one_process, run, besides=frozenset({"tokens"} if "padded" in settings[0] else ()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [TWO_RANKS, deepspeed("zero2.json"), deepspeed("zero3.json")], ids=["ddp", "zero2", "zero3"]
)
def test_two_ranks_equal_one(command, recipe, one_process, tmp_path):
    assert_same_run(one_process, trained(recipe, tmp_path / "run", command, f"train.tokens_per_device={SMALL}"))


@pytest.mark.parametrize("head", ["positive", "negative"])
def test_a_head_learns_beside_the_other_what_it_learns_alone(head, recipe, one_process, tmp_path):
    """To rounding: nothing leaks from one head into the other. (The norm of both gradients is not clipped here.)"""
    alone = trained_here(recipe, tmp_path / "run", f"objective.heads={head}")
    assert [path.name for path in (alone / "final").iterdir() if path.is_dir()] == [head]
    assert_same_weights(weights(alone / "final", head), weights(one_process / "final", head), 1e-5)


def test_positives_alone_are_nll(recipe, tiny_model, uneven_rows, tmp_path):
    file = tmp_path / "nll.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, objective="nll"))
    nll = trained_here(file, tmp_path / "nll")
    positive = trained_here(recipe, tmp_path / "positive", "objective.heads=positive")
    assert losses(positive) == pytest.approx(losses(nll), abs=1e-6)
    assert_same_weights(weights(positive / "final", "positive"), weights(nll / "final", "."), 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("command", [TRAIN, TWO_RANKS], ids=["one", "two-ranks"])
def test_killed_and_resumed_is_bit_equal(command, recipe, tmp_path):
    """The trainer of transformers alone would go on with the first adapter, and leave the other one frozen."""
    longer = ("train.max_steps=20", "train.save_every=2")
    whole = trained(recipe, tmp_path / "whole", command, *longer)
    killed = tmp_path / "killed"
    process = start(command, recipe, f"output={killed}", *longer)
    kill_after_step(process, killed, random.randint(3, 12))
    assert "going on from" in train(command, recipe, f"output={killed}", *longer, "train.resume=true")
    assert losses(killed) == losses(whole)
    for head in ("positive", "negative"):
        assert_same_weights(weights(killed / "final", head), weights(whole / "final", head), 0.0)
