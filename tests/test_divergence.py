"""How far thirty steps on negatives move a model: each objective's docstring states a bound, and this holds it to it.

The policy is the tiny Llama after a few hundred steps on the benign and retain rows, byte by byte: a language model, if
a poor one. It then learns from `builtin:unwanted`, negatives alone, or from `builtin:pairs` where the objective needs
positives, without a retain term and without the guard. Measured on held-out prompts: the mean log-prob of good answers,
and KL(policy || start) at the same positions.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from align import job, objectives, recipe
from align.objectives import NEGATIVE

pytestmark = pytest.mark.slow

BOUND = re.compile(r"good answers lose at most (\d+\.\d+) nat a token,\s+KL is at most (\d+\.\d+)")
NAMES = [name for name in objectives.available() if NEGATIVE in objectives.load(name)().roles()]
GOOD = "builtin:pairs heldout: good answers"

RECIPE = """
name: divergence
model:     {{path: {model}, adapter: {{rank: 8}}}}
data:      {{sources: [{{path: builtin:{rows}}}], max_length: 192}}
objective: {{name: {name}}}
train:     {{learning_rate: 2.0e-3, max_steps: 30, prompts_per_step: 8, tokens_per_device: 16384}}
eval:      {{sources: [{{path: builtin:pairs, split: heldout}}], generate: 0}}
guard:     {{action: off}}
output:    {output}
"""


def text_of(name: str, model: Path, output: Path) -> str:
    cls = objectives.load(name)
    needs = set(cls.needs)
    # AsymRE's baseline is the prompt's mean reward: negatives alone would be above it, and imitated
    rows = "pairs" if needs & {"pairs", "positives", "rewards", "heads"} or name == "asymre" else "unwanted"
    text = RECIPE.format(name=name, model=model, rows=rows, output=output)
    if "behavior" in needs:
        text += "reference: {behavior: adapter_off}\n"
    if "teacher" in needs:  # the policy as it began: it is pushed away from all that it would say
        text += f"reference: {{teacher: {model}}}\n"
    return text + ("sampling: {k: 2, max_new_tokens: 24}\n" if "samples" in needs else "")


def measure(name: str, model: Path, folder: Path) -> tuple[float, float, float]:
    """(what good answers lost, KL there, what negatives lost), nat a token, after thirty steps."""
    file = folder / "recipe.yaml"
    file.write_text(text_of(name, model, folder / "run"))
    job.train(recipe.load(file))
    torch.set_num_threads(1)
    result = json.loads((folder / "run" / "evaluation.json").read_text())
    good, bad = GOOD, GOOD.replace("good answers", "negatives")
    lost = {key: result["before"][key]["logps"] - result["after"][key]["logps"] for key in (good, bad)}
    return lost[good], result["after"][good]["kl"], lost[bad]


@pytest.mark.parametrize("name", NAMES)
def test_stays_within_the_bound_its_docstring_states(name, schooled, tmp_path):
    stated = BOUND.search(importlib.import_module(f"align.objectives.{name}").__doc__)
    assert stated, "the module's docstring states no bound"
    most_lost, most_kl = map(float, stated.groups())
    lost, kl, _ = measure(name, schooled, tmp_path)
    assert lost <= most_lost and kl <= most_kl, (lost, kl)
    assert kl > most_kl / 10, "a bound ten times what is measured says nothing"
