"""A world for tests of mining: a tiny model, a tiny sentence encoder, a tiny reward model, rows and a recipe."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForSequenceClassification

from align import recipe
from tests import tiny

RECIPE = """
name: mine
model:     {{path: {folder}/model, adapter: {{rank: 4}}}}
data:      {{sources: [{folder}/rows.jsonl], max_length: 200}}
mining:    {{encoder: {folder}/encoder, keep: 2}}
objective: {{name: dpo}}
train:     {{precision: fp32}}
output:    {folder}/out
"""
WORDS = "red blue green seven apples pears stone water slow fast never often".split()


def rows(count: int = 12) -> list[dict]:
    """Prompts with a positive and six negatives of unequal lengths; the last negative of each is empty of words."""
    found = []
    for n in range(count):
        texts = [" ".join(WORDS[(n + 5 * k + j) % 12] for j in range(1 + (n + k) % 5)) + f" {n}{k}" for k in range(7)]
        found.append({"prompt": f"What about {WORDS[n % 12]} {n}?", "positives": texts[:1], "negatives": texts[1:]})
    return found


def save_encoder(folder: Path) -> None:
    config = BertConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, pad_token_id=258, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def save_reward_model(folder: Path, labels: int = 1) -> None:
    config = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_labels=labels, pad_token_id=258, initializer_range=0.2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForSequenceClassification(config).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)


def write(file: Path, given: list[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in given))


def make(folder: Path) -> Path:
    """Writes models, rows and recipe; returns the recipe."""
    tiny.save(folder / "model")
    save_encoder(folder / "encoder")
    save_reward_model(folder / "reward")
    write(folder / "rows.jsonl", rows())
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder / "recipe.yaml"


def load(file: Path, output: Path, *overrides: str) -> recipe.Recipe:
    return recipe.load(file, [f"output={output}", *overrides])


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
