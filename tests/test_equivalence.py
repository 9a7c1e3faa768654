"""Runs that must agree do agree, through the real command line, on a tiny random model.

Unequal lengths, an unequal number of responses a prompt, samples drawn anew from the changing policy, and a
retain term. The guard measures at fixed steps, not when there is time: what it measures must agree, too.
"""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

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

pytestmark = pytest.mark.slow

STEPS = 6
LARGE, SMALL = 100_000, 800  # tokens_per_device: all eight rows in one micro-batch, or about one in each

RECIPE = """
name: equivalence
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{data}], max_length: 128}}
retain:    {{sources: [{data}], weight: 0.5, prompts_per_step: 3}}
sampling:  {{k: 2, max_new_tokens: 12, every: 2}}
objective: {{name: d2o, alpha: 0.3, beta: 0.1}}
train:     {{learning_rate: 1.0e-2, max_steps: {steps}, prompts_per_step: 8, tokens_per_device: {tokens}, seed: 3,
            precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
guard:     {{every: 3, prompts: 2, action: warn}}
output:    unset
"""


@pytest.fixture(scope="module")
def recipe(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "equivalence.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, steps=STEPS, tokens=LARGE))
    return file


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory) -> Path:
    """The run all others are compared with: one process, one micro-batch a step."""
    return trained(recipe, tmp_path_factory.mktemp("runs") / "one", TRAIN)


def test_the_first_loss_is_known(one_process):
    """The policy begins as its reference: every log-ratio is 0, D2O's part ln 2, the rest the retain term."""
    first = metrics(one_process)[0]
    assert first["loss"] == pytest.approx(math.log(2) + 0.5 * first["retain/nll"], abs=1e-6)
    assert first["log_ratio/negative"] == pytest.approx(0, abs=1e-6)


def test_accumulation_does_not_matter(recipe, one_process, tmp_path):
    run = trained(recipe, tmp_path / "run", TRAIN, f"train.tokens_per_device={SMALL}")
    assert_same_course(run, one_process)


def test_two_ranks_equal_one(recipe, one_process, tmp_path):
    run = trained(recipe, tmp_path / "run", TWO_RANKS)
    assert_same_course(run, one_process)


def test_two_ranks_with_accumulation_equal_one(recipe, one_process, tmp_path):
    run = trained(recipe, tmp_path / "run", TWO_RANKS, f"train.tokens_per_device={SMALL}")
    assert_same_course(run, one_process)


@pytest.mark.parametrize("config", ["zero2.json", "zero3.json"])
@pytest.mark.parametrize("tokens", [LARGE, SMALL])
def test_deepspeed_equals_one_process(config, tokens, recipe, one_process, tmp_path):
    run = trained(recipe, tmp_path / "run", deepspeed(config), f"train.tokens_per_device={tokens}")
    assert_same_course(run, one_process)


@pytest.mark.parametrize("tokens", [LARGE, SMALL])
@pytest.mark.parametrize(
    "command",
    [TRAIN, TWO_RANKS, deepspeed("zero2.json"), deepspeed("zero3.json")],
    ids=["one", "ddp", "zero2", "zero3"],
)
def test_padded_equals_packed(command, tokens, recipe, one_process, tmp_path):
    """The run that all are compared with is packed, which is the default."""
    settings = ("data.layout=padded", f"train.tokens_per_device={tokens}")
    run = trained(recipe, tmp_path / "run", command, *settings)
    padded, packed = (sum(line["tokens"] for line in metrics(one)) for one in (run, one_process))
    assert padded > 1.3 * packed, "every response has its own copy of the prompt"
    assert_same_course(run, one_process, besides=frozenset({"tokens"}))


def test_a_second_reference_that_is_the_same_changes_nothing(recipe, one_process, tmp_path):
    """At the start a frozen copy is the policy without its adapter: samples may be compared with either."""
    run = trained(recipe, tmp_path / "run", TRAIN, "reference.samples=frozen", f"train.tokens_per_device={SMALL}")
    assert_same_course(run, one_process)


def test_evaluation_under_zero3_equals_one_process(recipe, uneven_rows, tmp_path):
    held_out = (f"eval.sources=[{uneven_rows}]", "eval.generate=1", "eval.every=2", f"train.tokens_per_device={SMALL}")
    alone = trained(recipe, tmp_path / "alone", TRAIN, *held_out)
    sharded = trained(recipe, tmp_path / "sharded", deepspeed("zero3.json"), *held_out)
    ours, theirs = (json.loads((run / "evaluation.json").read_text()) for run in (alone, sharded))
    assert [one["step"] for one in ours["during"]] == [2, 4]
    for mine, other in ((ours["before"], theirs["before"]), (ours["after"], theirs["after"])):
        assert len(mine) == 2, "negatives and good answers"
        for name, measured in mine.items():
            assert measured["tokens"] == other[name]["tokens"]
            assert measured["logps"] == pytest.approx(other[name]["logps"], abs=1e-4)
            assert measured["kl"] == pytest.approx(other[name]["kl"], abs=1e-4)
    assert all(measured["kl"] > 1e-3 for measured in ours["after"].values())
    assert ours["answers_after"] == theirs["answers_after"] and len(ours["answers_after"]) == 1


FULL = ("model.adapter=null", "reference.policy=frozen", "train.learning_rate=1e-3")


@pytest.fixture(scope="module")
def full_fine_tune(recipe, tmp_path_factory) -> Path:
    return trained(recipe, tmp_path_factory.mktemp("runs") / "full", TRAIN, *FULL)


@pytest.mark.parametrize(
    "command", [TWO_RANKS, deepspeed("zero2.json"), deepspeed("zero3.json")], ids=["ddp", "zero2", "zero3"]
)
def test_full_fine_tune_on_two_ranks_equals_one(command, recipe, full_fine_tune, tmp_path):
    run = trained(recipe, tmp_path / "run", command, *FULL, f"train.tokens_per_device={SMALL}")
    assert_same_course(run, full_fine_tune)


def test_checkpointed_activations_do_not_matter(recipe, one_process, tmp_path):
    run = trained(recipe, tmp_path / "run", TRAIN, "train.recompute=all")
    assert_same_course(run, one_process)


@pytest.mark.parametrize("command", [TRAIN, TWO_RANKS], ids=["one", "two-ranks"])
def test_killed_and_resumed_is_bit_equal(command, recipe, tmp_path):
    """SIGKILL at a random moment of a run that saves every second step, then `train.resume=true`."""
    longer = ("train.max_steps=24", "train.save_every=2")
    whole = trained(recipe, tmp_path / "whole", command, *longer)
    killed = tmp_path / "killed"
    process = start(command, recipe, f"output={killed}", *longer)
    kill_after_step(process, killed, random.randint(3, 15))
    assert not (killed / "final").exists()
    printed = train(command, recipe, f"output={killed}", *longer, "train.resume=true")
    assert "going on from" in printed
    assert losses(killed) == losses(whole)  # to the last bit
    drawn = sorted((killed / "samples").glob("round-0.*"))
    assert sum(len(file.read_text().splitlines()) for file in drawn) == 16  # drawn once: two steps of eight prompts
