"""Objectives that couple a step, or ask for more than log-probs: the same for any micro-batch size, on one rank or two.

Through the real command line; KTO's KL, BCO's shift, AOT's order, Dr. DPO's softmax, Adaptive-DPO's norms and running
means, TRL's likelihood term in CPO; WPO's weights and CRINGE's draws off the logits; positives that NPO never sees, in
the retain term. What is carried from step to step survives a SIGKILL.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import tiny
from tests.commands import (
    TRAIN,
    TWO_RANKS,
    assert_same_course,
    deepspeed,
    kill_after_step,
    losses,
    run,
    start,
    train,
    trained,
)

pytestmark = pytest.mark.slow

RECIPE = """
name: coupled
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{data}], max_length: 128}}
retain:    {{positives: true, weight: 0.2}}
weights:   {{negative: 0.7}}
train:     {{learning_rate: 1.0e-2, max_steps: 6, prompts_per_step: 8, tokens_per_device: 100000, seed: 3,
            precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
guard:     {{every: 3, prompts: 2, action: warn}}
output:    unset
objective: {objective}
"""
OBJECTIVES = {
    "kto": "{name: kto, beta: 0.5, negative_weight: 1.5}",
    "bco": "{name: bco, beta: 0.5}",
    "aot": "{name: aot, beta: 0.5}",
    "aot-unpaired": "{name: aot, beta: 0.5, unpaired: true}",
    "dr_dpo": "{name: dr_dpo, beta: 0.5, beta_prime: 0.3}",
    "adaptive_dpo": "{name: adaptive_dpo, beta: 0.5}",
    "cpo-trl": "{name: cpo, nll: trl}",
    "dpo-wpo": "{name: dpo, beta: 0.5, wpo: true}",
    "cringe": "{name: cringe}",
    "npo": "{name: npo, beta: 0.5}",
    "negative_distillation": "{name: negative_distillation, steepness: 2}",
}


@pytest.fixture(scope="module")
def other_model(tmp_path_factory) -> Path:
    """A teacher that is not the policy's start."""
    folder = tmp_path_factory.mktemp("other-model")
    tiny.save(folder, seed=5)
    return folder


@pytest.fixture(scope="module", params=OBJECTIVES)
def recipe(request, tiny_model, other_model, uneven_rows, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "coupled.yaml"
    text = RECIPE.format(model=tiny_model, data=uneven_rows, objective=OBJECTIVES[request.param])
    if request.param == "negative_distillation":
        text += f"reference: {{teacher: {other_model}}}\n"
    if request.param == "cpo-trl":  # at step 6 its margin, of sums of hundreds of nats, is at float32's end
        text = text.replace("max_steps: 6", "max_steps: 5")
    file.write_text(text)
    return file


@pytest.fixture(scope="module")
def one_process(recipe, tmp_path_factory) -> Path:
    """One process, one micro-batch a step."""
    return trained(recipe, tmp_path_factory.mktemp("runs") / "one", TRAIN)


def test_micro_batches_do_not_matter(recipe, one_process, tmp_path):
    assert_same_course(trained(recipe, tmp_path / "run", TRAIN, "train.tokens_per_device=800"), one_process)


def test_two_ranks_with_micro_batches_equal_one(recipe, one_process, tmp_path):
    assert_same_course(trained(recipe, tmp_path / "run", TWO_RANKS, "train.tokens_per_device=800"), one_process)


@pytest.mark.parametrize(
    "name, config", [("kto", "zero3.json"), ("dr_dpo", "zero3.json"), ("bco", "zero2.json"), ("cringe", "zero2.json")]
)
def test_deepspeed_with_micro_batches_equals_one_process(name, config, tiny_model, uneven_rows, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, objective=OBJECTIVES[name]))
    alone = trained(file, tmp_path / "alone", TRAIN)
    sharded = trained(file, tmp_path / "sharded", deepspeed(config), "train.tokens_per_device=800")
    assert_same_course(sharded, alone)


def test_running_means_under_deepspeed_are_refused(tiny_model, uneven_rows, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, objective=OBJECTIVES["adaptive_dpo"]))
    result = run(deepspeed("zero2.json"), file, f"output={tmp_path / 'run'}")
    assert result.returncode != 0 and "never been tried under DeepSpeed; use DDP" in result.stderr


@pytest.mark.parametrize("name", ["bco", "adaptive_dpo"])
def test_what_is_carried_survives_a_kill(name, tiny_model, uneven_rows, tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, objective=OBJECTIVES[name]))
    longer = ("train.max_steps=24", "train.save_every=2")
    whole = trained(file, tmp_path / "whole", TRAIN, *longer)
    killed = tmp_path / "killed"
    process = start(TRAIN, file, f"output={killed}", *longer)
    kill_after_step(process, killed, random.randint(3, 15))
    train(TRAIN, file, f"output={killed}", *longer, "train.resume=true")
    assert losses(killed) == losses(whole)  # to the last bit
