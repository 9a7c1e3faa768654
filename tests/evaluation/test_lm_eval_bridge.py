"""A task of one's own through lm-evaluation-harness, against a loop over its documents; without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from align.errors import UserError
from align.evaluation import lm_eval_bridge
from align.evaluation.subject import Subject
from align.scoring.answers import Head
from tests import tiny

pytest.importorskip("lm_eval", reason="the extra lm-eval is not installed")
pytestmark = pytest.mark.slow

TASK = """
task: local_colours
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{right}}}}"
metric_list: [{{metric: acc}}]
"""


@pytest.fixture
def documents() -> list[dict]:
    options = ["gold", "cyan", "blue", "grey"]
    return [{"question": f"Colour of {n}?", "options": options, "right": 1 if n % 3 else 3} for n in range(12)]


@pytest.fixture
def folder(tmp_path, documents) -> Path:
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "task.yaml").write_text(TASK.format(data=data, cache=tmp_path / "cache"))
    return tmp_path / "tasks"


@torch.no_grad()
def right(model, document: dict) -> bool:
    """Whether the likeliest option, written behind the question and a space, is the right one."""
    encode, scores = tiny.tokenizer(), []
    question = encode(document["question"])["input_ids"]
    for option in document["options"]:
        ids = encode(f" {option}")["input_ids"]
        logits = model(input_ids=torch.tensor([[*question, *ids]])).logits[0, len(question) - 1 : -1]
        scores.append(logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).sum().item())
    return scores.index(max(scores)) == document["right"]


def test_a_local_task(folder, documents):
    base, policy = tiny.llama(), tiny.llama(seed=4)
    heads = {"base": Head(base, 0), "policy": Head(policy, 1)}
    subject = Subject("tiny", tiny.tokenizer(), heads, {name: {name: 1.0} for name in heads}, 128, "padded", False)
    found = lm_eval_bridge.evaluate(subject, ["local_colours"], str(folder), None)["local_colours"]
    assert found["documents"] == 12 and found["harness"]
    (figures,) = found["metrics"].values()
    wins = {name: [right(model, one) for one in documents] for name, model in (("base", base), ("policy", policy))}
    assert sum(wins["base"]) != sum(wins["policy"]), "the two would not be told apart"
    for name, own in wins.items():
        assert figures[name]["value"] == pytest.approx(sum(own) / 12), name
        low, high = figures[name]["interval"]
        assert low <= figures[name]["value"] <= high
    assert figures["policy"]["change"] == pytest.approx((sum(wins["policy"]) - sum(wins["base"])) / 12)
    few = lm_eval_bridge.evaluate(subject, ["local_colours"], str(folder), 5)["local_colours"]
    assert few["documents"] == 5
    (folder / "broken.yaml").write_text(f"task: broken\ndataset_path: json\ndataset_kwargs: {{data_files: {folder}}}\n")
    with pytest.raises(UserError, match="the harness stops") as error:
        lm_eval_bridge.evaluate(subject, ["broken"], str(folder), None)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="there is no task local_colour"):
        lm_eval_bridge.evaluate(subject, ["local_colour"], str(folder), None)
