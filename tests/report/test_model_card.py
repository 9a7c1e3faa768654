"""The model card: front matter that the hub takes, figures of the files, no data that Markdown would act on."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from align.report import facts, model_card
from tests.report import worlds


def card(run) -> str:
    return model_card.card(facts.read(run), "final")


def test_it_says_what_the_files_say(tmp_path):
    found = card(worlds.make(tmp_path / "run"))
    for said in (
        "LoRA adapter of rank 16", "| learned from | `builtin:unwanted` | 1.0 | 72 | 72 | - | - |",
        "| retained | `builtin:retain` | 1.0 | 60 | - | 60 | - |", "| beta | `0.1` |", "| reference | `adapter_off` |",
        f"reference `adapter_off`, SHA-256: `{'ab' * 32}`", "80 rows read, 72 used", "* held out: 8",
        "| builtin:unwanted held\\_out: negatives | -4.014 | -5.188 | -1.174 (-1.264 to -1.094) | 0.710 |",
        "* step 20, kl: lower the negative weight. KL on neutral prompts is over its budget; 1 is now 0.5",
        'PeftModel.from_pretrained(base, "final")',
    ):  # fmt: skip
        assert said in found, said
    assert ModelCard(found).data.to_dict() == {
        "library_name": "peft", "pipeline_tag": "text-generation", "base_model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "base_model_relation": "adapter", "tags": ["align", "negative-examples", "npo"],
    }  # fmt: skip


@pytest.mark.parametrize(
    "path, base", [("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"), ("{here}", None), ("model.gguf", None)]
)
def test_the_base_is_named_to_the_hub_where_it_is_there(tmp_path, path, base):
    run = worlds.make(tmp_path / "run")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"] = {"path": path.format(here=tmp_path), "adapter": None}
    recipe["data"]["sources"].append({"path": "owner/set", "split": "train", "weight": 1.0})
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = ModelCard(card(run)).data
    assert (told.base_model, told.library_name, told.datasets) == (base, "transformers", ["owner/set"])


def test_hostile_text_is_inert(tmp_path):
    run = worlds.make(tmp_path / "run", hostile=True)
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["name"] = f"--- \nlicense: mit\n---{worlds.HOSTILE}[link](http://x) ``` | cell"
    recipe["data"]["sources"][0]["path"] = "a`b|c</code><script>"
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = card(run)
    assert ModelCard(found).data.license is None
    text = found.split("```python")[0]
    assert (
        "\x1b" not in found
        and "\u202e" not in found
        and not re.search(r"(?<!\\)\]\(", text)
        and "`a'b\\|c</code><script>`" in text
    )
    assert "<script>" not in text.replace("`a'b\\|c</code><script>`", "").replace("\\<", "")


def test_a_run_without_anything_has_a_card(tmp_path):
    run = worlds.make(tmp_path / "run")
    for file in [*run.glob("*.json"), *run.glob("*.jsonl")]:
        file.unlink()
    assert "Nothing was measured." in card(run) and "No event was recorded." in card(run)
    (run / "data.json").write_text(json.dumps({"rows_read": 3, "rows_used": 2, "dropped": {}}))
    assert "3 rows read, 2 used." in card(run)
