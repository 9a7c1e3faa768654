"""Fisher information against a loop that knows nothing of our scoring; where its rows come from."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import AutoModelForCausalLM

from align.errors import UserError
from align.evaluation import subject
from align.repair import fisher, interpolate


def test_the_diagonal_equals_an_independent_loop(lora_run, tiny_model):
    models = subject.load(lora_run, is_whole=True)
    rows, origin = fisher.answers(models, str(lora_run), None)
    assert (len(rows), origin) == (24, "positives of the run")
    line = interpolate.line(models)
    found = fisher.diagonal(models, line.parameters.keys(), rows[:3])

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    weights = {name: weight for name, weight in model.named_parameters() if name in line.parameters}
    assert weights.keys() == found.keys() and len(weights) == 14, "the linear layers, which have adapters"
    expected = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for row in rows[:3]:
        model.zero_grad()
        (answer,) = row.responses
        ids = torch.tensor([[*row.prompt_ids, *answer.ids]])
        logps = model(ids).logits[0, :-1].log_softmax(-1)
        for place in range(len(row.prompt_ids) - 1, ids.shape[1] - 1):
            logps[place, ids[0, place + 1]].backward(retain_graph=True)
        for name, weight in weights.items():
            expected[name] += weight.grad**2
    mean = torch.cat([values.flatten() for values in expected.values()]).mean()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values / mean, rtol=1e-3, atol=1e-4)
    assert torch.cat([values.flatten() for values in found.values()]).mean().item() == pytest.approx(1, abs=1e-4)


def test_samples_stand_in_where_there_are_no_positives(lora_run, uneven_rows, tmp_path):
    run, rows = tmp_path / "run", tmp_path / "negatives.jsonl"
    shutil.copytree(lora_run, run)
    rows.write_text(json.dumps({"prompt": "Why?", "negatives": ["So."]}) + "\n")
    text = (run / "recipe.yaml").read_text()
    data = next(line.split("path: ", 1)[1] for line in text.splitlines() if "uneven" in line)
    (run / "recipe.yaml").write_text(text.replace(data, str(rows)))
    models = subject.load(run, is_whole=True)
    with pytest.raises(UserError, match="--fisher: there is no positive and no sample"):
        fisher.answers(models, str(run), None)
    (run / "samples").mkdir()
    drawn = {"prompt_key": "k", "prompt": [["user", "Why?"]], "samples": [{"text": "Because.", "ids": [1]}]}
    (run / "samples" / "round-0.rank0.jsonl").write_text(json.dumps(drawn) + "\n\n")
    found, origin = fisher.answers(models, str(run), None)
    assert origin == "samples of the run" and models.tokenizer.decode(found[0].responses[0].ids).startswith("Because.")
    named, origin = fisher.answers(models, str(run), str(uneven_rows))
    assert (len(named), origin) == (24, str(uneven_rows))
