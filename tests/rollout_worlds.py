"""A world for tests of the pipeline: a tiny model whose answers end soon, half of them right."""

from __future__ import annotations

import json
from pathlib import Path

from tests import tiny

RECIPE = """
name: tiny
model:      {{path: {folder}/model, adapter: {{rank: 4}}}}
data:       {{sources: [{folder}/rows.jsonl], max_length: 160}}
warm_start: {{path: {folder}/rows.jsonl, max_steps: 2, prompts_per_step: 4}}
sampling:   {{k: 4, max_new_tokens: 24, batch_size: 12}}
rollouts:   {{prompts: 8, held_out: 3, verifier: {{name: tests.rollout_worlds.is_even}}, against: [{{name: nll}}]}}
judges:     {{segment: lines, rollout: {{n: 2, good: 0.5}}, function: {{name: tests.rollout_worlds.long_steps}}}}
objective:  {{name: bcpg, tau: 0.01}}
train:      {{learning_rate: 1.0e-2, prompts_per_step: 4, tokens_per_device: 2048, precision: fp32, save_every: 1}}
eval:       {{holdout: 0.2}}
output:     {folder}/out
"""


def is_even(prompt, text: str, positives: list[str]) -> bool | None:
    """Right where the number of characters is even; undecided for every seventh."""
    return None if len(text) % 7 == 0 else len(text) % 2 == 0


def long_steps(example, text: str, ends) -> list[float | None]:
    """Steps are as good as they are long."""
    return [min(1.0, (end - begin) / 10) for begin, end in zip([0, *ends], ends, strict=False)]


def make(folder: Path) -> Path:
    """Writes model, rows and recipe; returns the recipe."""
    model = tiny.llama(initializer_range=0.25)
    model.generation_config.eos_token_id = [257, *range(24)]  # some letters end an answer, too
    model.save_pretrained(folder / "model")
    tiny.tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt": f"Question {n}?", "positives": [f"answer\n{n}"], "source": "tiny"} for n in range(40)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(folder=folder))
    return file


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]
