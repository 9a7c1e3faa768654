"""A LoRA run and a full run on the tiny model, trained hard enough to have lost answers of the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from align import job, recipe

RECIPE = """
name: hard
model:     {{path: {model}, adapter: {adapter}}}
data:      {{sources: [{data}], max_length: 128}}
objective: {{name: simpo}}
train:     {{learning_rate: {rate}, max_steps: 4, prompts_per_step: 8, seed: 3, precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""


def trained(folder: Path, **settings: object) -> Path:
    """The run folder of a recipe that was run to its end in this process."""
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(**settings))
    threads = torch.get_num_threads()
    job.train(recipe.load(file, [f"output={folder / 'run'}"]))
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture(scope="session")
def lora_run(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    return trained(folder, model=tiny_model, data=uneven_rows, adapter="{rank: 4}", rate=0.03)


@pytest.fixture(scope="session")
def full_run(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full")
    return trained(folder, model=tiny_model, data=uneven_rows, adapter="null", rate=0.003)
