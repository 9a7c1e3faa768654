"""Every recipe that ships trains: four steps of the tiny model, by the whole job, in this process."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from align import job, recipe
from tests.commands import metrics

ROOT = Path(__file__).resolve().parent.parent


def makes_rows(loaded: recipe.Recipe) -> bool:
    """Whether a recipe is for align iterate, align mine or align negatives."""
    return any(section is not None for section in (loaded.rollouts, loaded.mining, loaded.degrade, loaded.repair))


RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
RECIPES = [path for path in RECIPES if not makes_rows(recipe.load(path))]
STEPS = 4


def overrides(path: Path, model: Path, output: Path) -> list[str]:
    """What makes a recipe small: nothing of its objective and data is touched."""
    given = [f"model.path={model}", f"output={output}", f"train.max_steps={STEPS}", "train.prompts_per_step=4"]
    given += ["train.tokens_per_device=8192", "eval.sources=[]", "eval.generate=0"]
    if "sampling:" in path.read_text(encoding="utf-8"):
        given += ["sampling.max_new_tokens=8"]
    if "teacher:" in path.read_text(encoding="utf-8"):  # a run that there is not: any model can teach
        given += [f"reference.teacher={model}"]
    return given


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_trains(path, tiny_model, tmp_path):
    loaded = recipe.load(path, overrides(path, tiny_model, tmp_path / "run"))
    threads = torch.get_num_threads()
    job.train(loaded)
    torch.set_num_threads(threads)
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(line["grad_norm"] > 0 for line in lines)
    assert len({line["loss"] for line in lines}) == STEPS
    written = json.loads((tmp_path / "run" / "data.json").read_text())
    assert written["rows_used"] > 50
    adapters = list((tmp_path / "run" / "final").rglob("adapter_model.safetensors"))
    assert adapters
    for adapter in map(load_file, adapters):
        assert any(name.endswith("lora_B.weight") and values.abs().max() > 0 for name, values in adapter.items())
