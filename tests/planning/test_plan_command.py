"""`align plan` as a user runs it, on the tiny model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from align.cli import run as align
from align.errors import UserError
from align.planning import advice
from align.planning.command import setting_of
from align.planning.memory import CUDA
from align.planning.sharding import Zero
from tests import commands

PLAN = [sys.executable, "-m", "align.cli", "plan"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_model, uneven_rows) -> Path:
    file = tmp_path_factory.mktemp("plan") / "own.yaml"
    file.write_text(
        f"name: own\nmodel: {{path: {tiny_model}, adapter: {{rank: 4}}}}\ndata: {{sources: [{uneven_rows}]}}\n"
        "objective: {name: dpo}\ntrain: {prompts_per_step: 4, tokens_per_device: 300, max_steps: 5, precision: fp32}\n"
        f"output: {file.parent / 'run'}\n"
    )
    return file


def planned(capsys, *words: object) -> dict:
    align(["plan", *map(str, words), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.mark.slow
def test_it_tells_and_leaves_nothing_behind(recipe):
    before = sorted(recipe.parent.rglob("*"))
    done = commands.run(PLAN, recipe, "--probe")
    assert done.returncode == 0, done.stderr[-3000:]
    for said in ("own: dpo on", "weights ", "steps           5 of 4.0 prompts, ", "total", "fits", "training", " to "):
        assert said in done.stdout, done.stdout
    assert sorted(recipe.parent.rglob("*")) == before
    assert not list(Path(commands.own_cache()).glob("reference*"))


@pytest.mark.parametrize("probe", ["--no-probe", "--probe"])
@pytest.mark.parametrize("name", ["likra", "negative_distillation", "adaptive_dpo", "kto"])
def test_objectives_with_more_models_than_one(name, probe, capsys, tiny_model, uneven_rows, root):
    """Two adapters, a teacher, running means, mismatched prompts."""
    words = (f"model.path={tiny_model}", f"data.sources=[{uneven_rows}]", "eval.sources=[]", "train.max_steps=2")
    found = planned(capsys, root / "recipes" / f"{name}.yaml", *words, probe)
    parts = found["memory"]["parts_bytes"]
    assert found["parameters"]["trained"] and parts["activations"] > 0
    assert ("teacher" in parts) == (name == "negative_distillation")
    assert (found["seconds"] is None) == (probe == "--no-probe")


@pytest.mark.slow
def test_it_counts_what_the_run_then_does(recipe, capsys, tmp_path):
    found = planned(capsys, recipe, "--no-probe")
    run = commands.trained(recipe, tmp_path / "run", commands.TRAIN)
    lines = commands.metrics(run)
    assert len(lines) == found["steps"] == found["steps_looked_at"] == 5
    assert sum(line["tokens"] for line in lines) == pytest.approx(5 * found["a_step"]["tokens"])
    assert found["seconds"] is None
    parts = found["memory"]["parts_bytes"]
    assert sum(parts.values()) == found["memory"]["total_bytes"]
    assert parts["optimiser"] == 8 * found["parameters"]["trained"] == 2 * parts["gradients"]


@pytest.mark.slow
def test_full_fine_tuning_holds_a_reference_and_more_state(recipe, capsys):
    lora, full = planned(capsys, recipe, "--no-probe"), planned(capsys, recipe, "model.adapter=null", "--no-probe")
    assert full["parameters"]["frozen"] == 0
    assert full["parameters"]["trained"] == lora["parameters"]["frozen"]
    weights = full["memory"]["parts_bytes"]["weights"]
    assert full["memory"]["parts_bytes"]["reference"] == weights == full["memory"]["parts_bytes"]["gradients"]
    assert "reference" not in lora["memory"]["parts_bytes"]


@pytest.mark.slow
def test_gpus_that_are_too_small_get_advice(recipe, capsys):
    words = (recipe, "model.adapter=null", "--gpus", 4, "--gpu-memory", 0.7)
    found = planned(capsys, *words)
    assert found["verdict"] == "does not fit" and found["device"]["count"] == 4
    assert not found["device"]["checked_on_hardware"] and any("not been checked" in note for note in found["notes"])
    changes = {one["change"]: one["total_bytes"] for one in found["changes"]}
    assert "model.adapter={rank: 16}" in changes
    assert all(total < found["memory"]["total_bytes"] for total in changes.values())
    align(["plan", *map(str, words), "--zero", "1"])
    assert "ZeRO-1" in capsys.readouterr().out


@pytest.mark.slow
def test_samples_and_coupled_objectives_are_planned(recipe, capsys):
    d2o = ("objective.name=d2o", "objective.beta=0.1", "sampling.k=2", "sampling.max_new_tokens=8")
    found = planned(capsys, recipe, *d2o, "--probe")
    assert "sampling" in found["memory"]["moments_bytes"]
    assert {"training", "sampling", "measuring"} <= found["seconds"].keys()
    assert found["seconds"]["total"]["low"] <= found["seconds"]["total"]["mean"] <= found["seconds"]["total"]["high"]
    assert planned(capsys, recipe, "objective.name=kto", "--no-probe")["a_step"]["mismatched_tokens"] > 0


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["train.epochz=2"], "did you mean 'epochs'"),
        (["data.sources=[nowhere.jsonl]"], "nowhere.jsonl"),
        (["--gpus", "2", "--probe"], "there is no GPU here"),
        (["--zero", "7"], "cannot be read"),
        (["--gpu-memory", "-3"], "no number of gigabytes"),
    ],
)
def test_mistakes(recipe, words, what):
    with pytest.raises(UserError, match=what):
        align(["plan", str(recipe), *words])


def test_where_a_run_is_planned_for():
    one = setting_of("auto", gpus=8, gpu_memory=80, zero="3")
    assert (one.device, one.ranks, one.memory, one.bf16) == (CUDA, 8, 80_000_000_000, True)
    assert one.zero == Zero(3, overlap_comm=True)
    assert not one.autocast and setting_of("auto", gpus=1, gpu_memory=None, zero="0").autocast
    assert not setting_of("fp32", gpus=1, gpu_memory=None, zero="0").bf16


@pytest.mark.parametrize(("share", "verdict"), [(0.5, "fits"), (0.95, "tight"), (1.01, "does not fit")])
def test_verdicts(share, verdict):
    from types import SimpleNamespace as Some

    plan = Some(setting=Some(memory=1000), memory=Some(total=1000 * share))
    assert advice.verdict(plan) == verdict
    assert advice.verdict(Some(setting=Some(memory=None), memory=plan.memory)) == "unknown"
