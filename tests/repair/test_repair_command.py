"""`align repair` from questions to a run that evaluates, of a run and of a model; what it refuses."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from safetensors.torch import load_file

from align import cli
from align.errors import UserError
from tests.commands import run

SETTINGS = ("train.precision=fp32", "train.prompts_per_step=8", "train.learning_rate=0.02", "train.epochs=4")


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    """16 questions; "odd" has the answer Yes, "even" No: what a head can learn to tell."""
    file = tmp_path_factory.mktemp("data") / "yesno.jsonl"
    rows = [
        {"prompt": f"{n}: {word}?", "positives": [right], "negatives": [wrong]}
        for n in range(8)
        for word, right, wrong in (("odd", "Yes", "No"), ("even", "No", "Yes"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_runs_policy_is_repaired(lora_run, questions, tmp_path, capsys):
    out, threads = tmp_path / "out", torch.get_num_threads()
    cli.run(["repair", str(lora_run), "--data", str(questions), "--out", str(out), "--heads", "2", "--json", *SETTINGS])
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((out / "repair.json").read_text())
    assert found["questions"] == 8 and found["rows"]["rows_used"] == 16 and len(found["heads"]) == 2
    for scores in found["heads"].values():
        assert scores["base"] > 0 and scores["policy"] != scores["base"]
    assert {"bias: Yes or No", "bias: No or Yes", "bias: False or True"} < found["metrics"].keys()
    assert (out / "repair" / "policy" / "model.safetensors").is_file(), "the adapter's model, which is repaired"
    matrices = load_file(out / "final" / "adapter_model.safetensors")
    layers = {name.split("layers.")[1].split(".")[0] for name in matrices}
    assert layers == {name[1] for name in found["heads"]}
    cli.run(
        [
            "evaluate",
            str(out),
            "--data",
            str(out / "repair" / "heldout.jsonl"),
            "--measure",
            "multiple_choice",
            "--json",
        ]
    )
    torch.set_num_threads(threads)
    (measured,) = json.loads(capsys.readouterr().out)["measures"].values()
    for name in ("base", "policy"):
        orders = [found["metrics"][f"accuracy: {words}"][name]["value"] for words in ("Yes or No", "No or Yes")]
        assert measured["metrics"]["accuracy by sum"][name]["value"] == pytest.approx(sum(orders) / 2)


@pytest.mark.slow
def test_a_model_is_repaired_as_a_user_runs_it(tiny_model, questions, tmp_path):
    repair = [sys.executable, "-m", "align.cli", "repair", tiny_model, "--data", questions]
    done = run(repair, "--out", tmp_path / "out", *SETTINGS)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "accuracy" in done.stdout and "True, False or I don't know" in done.stdout
    refused = run(repair, "--out", tmp_path / "other", "train.epoch=3")
    assert refused.returncode == 2 and "did you mean 'epochs'" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_mistakes_are_one_line(tiny_model, questions, uneven_rows, tmp_path):
    for arguments, message in (
        ([tiny_model, "--data", questions, "--out", tmp_path], "--out: "),
        ([tiny_model, "--data", uneven_rows, "--out", tmp_path / "x"], "no question of yes or no: 24"),
        ([tmp_path / "none", "--data", questions, "--out", tmp_path / "x"], "no such folder"),
        ([tiny_model, "--data", questions, "--out", tmp_path / "x", "output=y"], "leave such overrides out"),
    ):
        with pytest.raises(UserError) as error:
            cli.run(["repair", *map(str, arguments)])
        assert message in str(error.value) and "\n" not in str(error.value)
        assert not (tmp_path / "x").exists()
