"""`align evaluate` on finished runs: heads, a policy, curves, what it refuses; once through the real command line."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from align import cli, job, recipe
from align.data.ledger import Ledger
from align.errors import UserError
from align.evaluation import multiple_choice, subject
from align.likelihood_ratio import LikelihoodRatioModel
from tests.commands import run

EVALUATE = [sys.executable, "-m", "align.cli", "evaluate"]

RECIPE = """
name: evaluated
model:     {{path: {model}, adapter: {adapter}}}
data:      {{sources: [{data}], max_length: 128{nat}}}
objective: {{name: {objective}}}
train:     {{learning_rate: 1.0e-2, max_steps: 4, prompts_per_step: 8, seed: 3, precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""


def finished(
    folder: Path, model: Path, data: Path, objective: str, *settings: str, adapter="{rank: 4}", nat=""
) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(model=model, data=data, objective=objective, adapter=adapter, nat=nat))
    threads = torch.get_num_threads()
    job.train(recipe.load(file, [f"output={folder / 'run'}", *settings]))
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture(scope="module")
def heads(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    return finished(tmp_path_factory.mktemp("likra"), tiny_model, uneven_rows, "likra", "train.snapshots=true")


@pytest.fixture
def evaluate(capsys):
    """What the command prints: as JSON, or as text."""

    def command(*arguments: object, as_json: bool = True):
        capsys.readouterr()
        threads = torch.get_num_threads()
        cli.run(["evaluate", *map(str, arguments), *(["--json"] if as_json else [])])
        torch.set_num_threads(threads)
        printed = capsys.readouterr().out
        return json.loads(printed) if as_json else printed

    return command


def test_heads_and_their_ratio(evaluate, heads, uneven_rows):
    found = evaluate(heads, "--data", uneven_rows)
    scores = found["multiple_choice"]
    assert list(scores) == ["base", "positive", "negative", "ratio to base", "ratio"]
    assert found["rows"]["rows_used"] == 24 and found["made"]["data_sha256"]
    model = LikelihoodRatioModel.from_pretrained(heads, arithmetic="fp32")
    right = {"base": 0, "ratio": 0}
    for line in uneven_rows.read_text().splitlines():
        row = json.loads(line)
        answers = row["negatives"] + row["positives"]
        logps = model.logps(row["prompt"], answers)
        for name, values in (("base", logps["base"]), ("ratio", model.score(row["prompt"], answers))):
            right[name] += bool(values[-1] > values[:-1].max())
    for name, count in right.items():
        assert scores[name]["sum"]["accuracy"] == pytest.approx(count / 24)
    assert 0 < right["base"] < 24, "a base that is always right or wrong would hide a mistake"


@pytest.mark.slow
def test_the_weight_is_chosen_on_other_rows(heads, uneven_rows, tmp_path):
    """By the real command line."""
    tune = tmp_path / "tune.jsonl"
    rows = [{"prompt": f"Is {n} small?", "positives": ["It is."], "negatives": ["No", "red"]} for n in range(6)]
    tune.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(EVALUATE, heads, "--data", uneven_rows, "--tune", tune)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "rows read 24, used 24" in result.stdout and "24 questions" in result.stdout
    assert "by --tune" in result.stdout
    refused = run(EVALUATE, heads, "--data", uneven_rows, "--tune", "builtin:pairs")  # all too long for this run
    assert refused.returncode == 2
    assert "--tune: no row can be used (too long" in refused.stderr


def test_curve(evaluate, heads, uneven_rows, tmp_path):
    pytest.importorskip("matplotlib")
    image = tmp_path / "curve.svg"
    found = evaluate(heads, "--data", uneven_rows, "--curve", "--plot", image)
    (points,) = found["curves"].values()
    assert list(points) == ["0", "8", "16", "32"] and list(points["0"]) == ["base"]
    final = evaluate(heads, "--data", uneven_rows)["multiple_choice"]
    for name in ("base", "positive", "negative", "ratio"):  # four steps: the last snapshot is the final one
        assert points["32"][name]["sum"] == final[name]["sum"], name
    assert b"<svg" in image.read_bytes()[:400]
    text = evaluate(heads, "--data", uneven_rows, "--curve", as_json=False)
    assert "ratio to base" in text and "accuracy by sum" in text


def test_the_policy_of_another_objective(evaluate, tiny_model, uneven_rows, tmp_path):
    policy = finished(tmp_path, tiny_model, uneven_rows, "dpo", "train.learning_rate=0.05")
    scores = evaluate(policy, "--data", uneven_rows)["multiple_choice"]
    assert list(scores) == ["base", "policy"]
    assert scores["policy"]["sum"]["accuracy"] > scores["base"]["sum"]["accuracy"], "it was trained on these rows"


def test_a_fully_trained_policy_is_compared_with_the_base(evaluate, tiny_model, uneven_rows, tmp_path):
    full = finished(tmp_path, tiny_model, uneven_rows, "simpo", adapter="null")
    scores = evaluate(full, "--data", uneven_rows)["multiple_choice"]
    assert scores["policy"]["sum"] != scores["base"]["sum"]


def test_nats_policy_is_asked_behind_its_prompt(tiny_model, uneven_rows, tmp_path):
    nat = ", nat: {success: Be right., failure: Be wrong.}"
    loaded = subject.load(finished(tmp_path, tiny_model, uneven_rows, "nll", nat=nat))
    assert loaded.prefix == "Be right."
    examples = multiple_choice.questions(str(uneven_rows), Ledger())
    asked = multiple_choice.score(loaded, examples, Ledger()).logps
    bare = multiple_choice.score(dataclasses.replace(loaded, prefix=None), examples, Ledger()).logps
    np.testing.assert_allclose(np.concatenate(asked["base"]), np.concatenate(bare["base"]), atol=1e-4)
    assert np.abs(np.concatenate(asked["policy"]) - np.concatenate(bare["policy"])).max() > 0.01


def test_mistakes_are_one_line(heads, uneven_rows, tmp_path):
    for arguments, message in (
        ([tmp_path, "--data", uneven_rows], "is no finished run"),
        ([heads, "--data", tmp_path / "none.jsonl"], "no such file"),
        ([heads, "--data", uneven_rows, "--plot", "x.png"], "add --curve"),
        ([heads, "--data", uneven_rows, "--curve", "--plot", "x.txt"], "neither .png nor .svg"),
        ([heads, "--data", uneven_rows, "--curve", "--tune", uneven_rows], "leave out --curve"),
        ([heads], "--data"),
    ):
        with pytest.raises(UserError) as error:
            cli.run(["evaluate", *map(str, arguments)])
        assert message in str(error.value) and "\n" not in str(error.value)
