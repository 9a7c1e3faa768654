"""What a user does wrong gives one line, exit code 2, no traceback, and leaves nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import TRAIN, run

RECIPE = """
name: wrong
model:     {{path: {model}, adapter: {{rank: 2}}}}
data:      {{sources: [{data}], max_length: 128}}
sampling:  {{k: 2, max_new_tokens: 4}}
objective: {{name: d2o}}
train:     {{max_steps: 2, prompts_per_step: 4, tokens_per_device: 4000}}
eval:      {{generate: 0, sources: []}}
output:    {output}
"""


@pytest.fixture
def attempt(tiny_model, tmp_path):
    """Runs a recipe that must fail; returns its one line on stderr."""

    def go(data: Path | str, *overrides: str, model: Path | str = tiny_model, lines: int = 1) -> str:
        output, file = tmp_path / "run", tmp_path / "wrong.yaml"
        file.write_text(RECIPE.format(model=model, data=data, output=output))
        result = run(TRAIN, file, *overrides)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert not output.exists(), "a refused run leaves nothing behind"
        said = [
            line for line in result.stderr.splitlines() if line.startswith((str(tmp_path), "data", "model", "command"))
        ]
        assert len(said) >= lines, result.stderr
        return "\n".join(said)

    return go


def rows(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


GOOD = {"prompt": "Say hello.", "negatives": ["No."]}


def test_unknown_keys_all_at_once(attempt, tmp_path):
    data = rows(tmp_path / "good.jsonl", GOOD)
    said = attempt(data, "objective.betta=1", "trian.epochs=2", lines=2)
    assert "objective.betta: unknown key; did you mean 'beta'?" in said
    assert "trian: unknown key; did you mean 'train'?" in said


def test_missing_data_file(attempt, tmp_path):
    said = attempt(tmp_path / "absent.jsonl")
    assert "wrong.yaml:4: data.sources[0].path" in said and "no such file" in said


def test_missing_model(attempt, tmp_path):
    data = rows(tmp_path / "good.jsonl", GOOD)
    assert "model.path" in attempt(data, model=tmp_path / "nowhere")


def test_k_zero(attempt, tmp_path):
    data = rows(tmp_path / "good.jsonl", GOOD)
    assert "sampling.k: 0 is out of range; it must be at least 1" in attempt(data, "sampling.k=0")


def test_broken_row(attempt, tmp_path):
    data = rows(tmp_path / "broken.jsonl", GOOD, '{"prompt": "Hi", "negatives": [', {"prompt": " ", "negatives": ["x"]})
    said = attempt(data, lines=2)
    assert f"{data}:2: is not valid JSON" in said and f"{data}:3: 'prompt' is empty" in said


def test_no_negatives_at_all(attempt, tmp_path):
    data = rows(tmp_path / "positive.jsonl", {"prompt": "Say hello.", "positives": ["Hello."]})
    said = attempt(data)
    assert "objective 'd2o' needs negatives, but none of the first 1 rows can supply it" in said


def test_empty_file(attempt, tmp_path):
    assert "holds no usable row" in attempt(rows(tmp_path / "empty.jsonl"))


def test_row_larger_than_a_device(attempt, tmp_path):
    data = rows(tmp_path / "good.jsonl", GOOD)
    said = attempt(data, "train.tokens_per_device=20", "train.recompute=cheap")
    assert f"{data}:1" in said and "train.tokens_per_device is 20, times 1.75 under train.recompute: cheap" in said


@pytest.mark.slow
def test_good_rows_are_used_if_the_recipe_says_skip(tiny_model, tmp_path):
    data = rows(tmp_path / "broken.jsonl", GOOD, "{", {"prompt": "Say bye.", "negatives": ["Never."]}, "null")
    output, file = tmp_path / "run", tmp_path / "skip.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=data, output=output))
    result = run(TRAIN, file, "data.on_bad_rows=skip", "eval.holdout=0")
    assert result.returncode == 0, result.stderr
    ledger = json.loads((output / "data.json").read_text())
    assert (ledger["rows_read"], ledger["rows_used"]) == (4, 2)
    assert ledger["dropped"]["broken"]["count"] == 2
    assert [place.split(":")[1] for place in ledger["dropped"]["broken"]["first"]] == ["2", "4"]


@pytest.mark.slow
def test_a_finished_run_is_not_overwritten(tiny_model, uneven_rows, tmp_path):
    output, file = tmp_path / "run", tmp_path / "twice.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, output=output))
    assert run(TRAIN, file).returncode == 0
    before = (output / "metrics.jsonl").read_bytes()
    again = run(TRAIN, file)
    assert again.returncode == 2 and "already holds a run" in again.stderr
    resumed = run(TRAIN, file, "train.resume=true")
    assert resumed.returncode == 0 and "is finished" in resumed.stdout
    assert (output / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_non_finite_loss_stops_and_names_step_and_prompts(tiny_model, uneven_rows, tmp_path):
    output, file = tmp_path / "run", tmp_path / "explodes.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows, output=output))
    result = run(TRAIN, file, "train.learning_rate=1e30", "train.max_steps=5", "train.hf.max_grad_norm=0")
    assert result.returncode == 1, result.stderr
    assert "Traceback" not in result.stderr
    line = next(line for line in result.stderr.splitlines() if line.startswith("stopped: step "))
    assert "uneven.jsonl:" in line or "gradient norm" in line
    logged = [json.loads(text) for text in (output / "metrics.jsonl").read_text().splitlines()]
    assert all(abs(entry["loss"]) < float("inf") for entry in logged), "a loss that is no number is never logged as one"
    assert not (output / "final").exists()
