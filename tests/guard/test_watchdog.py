"""The guard through the real command line: it changes nothing without an alarm, and saves a run that would collapse."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
import torch

from align import job
from align.recipe import load
from tests.commands import (
    TRAIN,
    TWO_RANKS,
    assert_same_course,
    deepspeed,
    kill_after_step,
    losses,
    metrics,
    run,
    start,
    train,
    trained,
)

pytestmark = pytest.mark.slow

RECIPE = """
name: guarded
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{data}], max_length: 192}}
retain:    {{sources: [{data}], weight: 0.5, prompts_per_step: 3}}
objective: {{name: dpo, beta: 0.5}}
train:     {{learning_rate: 1.0e-2, max_steps: 8, prompts_per_step: 8, tokens_per_device: 100000, seed: 3,
            precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
guard:     {{every: 2, prompts: 3}}
output:    unset
"""
WIDE = "guard.budgets={positive: null, retain: null, benign: null, kl: null, entropy: null, top1: null, repeated: null}"
# Nothing but the KL on neutral prompts counts, and every bit of it is too much.
TIGHT = WIDE.replace("kl: null", "kl: 1e-6")


@pytest.fixture(scope="module")
def recipe(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "guarded.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows))
    return file


def events(folder: Path) -> list[dict]:
    file = folder / "guard.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_without_an_alarm_nothing_is_changed_to_the_last_bit(recipe, tmp_path):
    watched, alone = tmp_path / "watched", tmp_path / "alone"
    for folder, settings in ((watched, [WIDE, "guard.budgets.repetition=null"]), (alone, ["guard.action=off"])):
        job.train(load(recipe, [f"output={folder}", *settings]))
        torch.set_num_threads(1)
    assert events(watched) == []
    ours, theirs = metrics(watched), metrics(alone)
    for mine, other in zip(ours, theirs, strict=True):
        assert all(mine[key] == other[key] for key in other.keys() - {"tokens_per_second", "reference/forwards"})
        assert not any(key.startswith("guard/") for key in other)
    measured = [line["step"] for line in ours if "guard/kl" in line]
    assert measured == [2, 4, 6, 8]
    last = ours[-1]
    for watch in ("positive", "retain", "benign", "kl", "entropy", "top1", "repeated"):
        assert f"guard/{watch}" in last
    assert [line["step"] for line in ours if "guard/repetition" in line and "guard/length" in line] == [8]
    assert last["guard/kl"] > 1e-3 and last["guard/share"] > 0 and "guard/negative_weight" not in last
    assert last["guard/positive"] != 0 and "guard/gradient_cosine" in last
    left = {path.name for path in watched.iterdir()}
    assert "checkpoints" not in left, "the guard's own checkpoints are gone"


@pytest.mark.parametrize("command", [TWO_RANKS, deepspeed("zero3.json")], ids=["ddp", "zero3"])
def test_all_actions_are_the_same_on_two_ranks(command, recipe, acted, tmp_path):
    """Lowered, anchored, rolled back and stopped at the same steps, with the same losses in between."""
    folder = tmp_path / "run"
    result = run(command, recipe, f"output={folder}", TIGHT, "train.tokens_per_device=800")
    assert result.returncode == 1 and result.stderr.count("stopped: guard: step 4: ") == 1
    assert [one["action"] for one in events(folder)] == ["lower", "anchor", "rollback", "stop"]
    for mine, other in zip(events(folder), events(acted), strict=True):
        assert mine.keys() == other.keys() and mine["value"] == pytest.approx(other["value"], rel=2e-2)
    assert_same_course(folder, acted)


@pytest.fixture(scope="module")
def acted(recipe, tmp_path_factory) -> Path:
    """One process whose budget is nothing: everything is done, one after the other."""
    folder = tmp_path_factory.mktemp("runs") / "acted"
    result = run(TRAIN, recipe, f"output={folder}", TIGHT)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("stopped: ")]
    assert line.startswith("stopped: guard: step 4: KL(policy || start) on neutral prompts is ")
    assert line.endswith(f"the last good checkpoint is {folder / 'checkpoints/step-1'}")
    return folder


def test_what_was_done_is_written_down(acted):
    done = events(acted)
    assert [(one["step"], one["action"]) for one in done] == [(2, "lower"), (2, "anchor"), (2, "rollback"), (4, "stop")]
    assert all(one["watch"] == "kl" and one["value"] > one["budget"] == 1e-6 for one in done)
    assert all(type(one["text"]) is str for one in done)
    lines = metrics(acted)
    assert [line["step"] for line in lines] == [1, 2, 3, 4], "the step that it was stopped at is there"
    assert [line.get("guard/negative_weight") for line in lines] == [None, 0.5, 0.5, 0.5]
    assert lines[3]["guard/kl"] < lines[1]["guard/kl"] * 2, "after the roll-back it began anew from step 1"
    assert not (acted / "final").exists() and (acted / "checkpoints/step-1/adapter_model.safetensors").is_file()


def test_killed_and_resumed_with_measures_in_force_is_bit_equal(recipe, tmp_path):
    tight = TIGHT.replace("1e-6", "0.02")
    longer = (tight, "train.max_steps=16", "train.save_every=3", "guard.action=rollback", "train.learning_rate=3e-3")
    whole = trained(recipe, tmp_path / "whole", TRAIN, *longer)
    assert {"lower", "anchor"} <= {one["action"] for one in events(whole)}
    killed = tmp_path / "killed"
    process = start(TRAIN, recipe, f"output={killed}", *longer)
    kill_after_step(process, killed, random.randint(4, 12))
    train(TRAIN, recipe, f"output={killed}", *longer, "train.resume=true")
    assert losses(killed) == losses(whole)
    assert events(killed) == events(whole)


ASCENT = """
name: ascent
model:     {{path: {model}, adapter: {{rank: 8}}}}
data:      {{sources: [{{path: builtin:unwanted}}], max_length: 192}}
objective: {{name: npo, beta: 1.0e-4}}
train:     {{learning_rate: 2.0e-3, max_steps: 40, prompts_per_step: 8, tokens_per_device: 16384, precision: fp32}}
eval:      {{sources: [{{path: builtin:benign, split: heldout}}], generate: 3}}
guard:     {{every: 3}}
output:    unset
"""


def benign(folder: Path) -> tuple[float, float, float]:
    """(log-prob of good answers to neutral prompts before, after, KL after), nat a token, on all of builtin:benign."""
    result = json.loads((folder / "evaluation.json").read_text())
    name = "builtin:benign heldout: good answers"
    return result["before"][name]["logps"], result["after"][name]["logps"], result["after"][name]["kl"]


def test_gradient_ascent_collapses_without_the_guard_and_ends_healthy_with_it(schooled, tmp_path):
    """NPO at a beta near 0 is plain gradient ascent on the negatives' likelihood."""
    recipe = tmp_path / "ascent.yaml"
    recipe.write_text(ASCENT.format(model=schooled))
    alone = trained(recipe, tmp_path / "alone", TRAIN, "guard.action=off")
    guarded = trained(recipe, tmp_path / "guarded", TRAIN)
    before, collapsed, far = benign(alone)
    assert before - collapsed > 2.0 and far > 2.0
    again, healthy, near = benign(guarded)
    assert again == before and before - healthy < 0.5 and near < 0.6
    assert events(guarded)[0]["action"] in ("warn", "lower", "anchor", "rollback")
    assert metrics(guarded)[-1]["logps/negative"] < metrics(guarded)[0]["logps/negative"] - 0.1, "it still learned"
