"""Streamed runs through the real command line: any number of ranks, killed anywhere and resumed, on a tiny model."""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

import pytest

from tests.commands import TRAIN, TWO_RANKS, kill, losses, metrics, run, start, train, trained

pytestmark = pytest.mark.slow

STEPS = 12

RECIPE = """
name: streamed
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{{path: "{data}/train-*.jsonl"}}, {{path: {data}/more.jsonl, weight: 0.5}}], max_length: 128,
            {feed}}}
retain:    {{sources: [{data}/more.jsonl], weight: 0.5, prompts_per_step: 3}}
objective: {{name: {objective}}}
train:     {{learning_rate: 1.0e-2, max_steps: 12, prompts_per_step: 8, tokens_per_device: 800, precision: fp32,
            save_every: 1}}
eval:      {{holdout: 0.1, generate: 0, sources: []}}
guard:     {{every: 4}}
output:    unset
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three shards of unequal size with one-role rows among the pairs, and a smaller source."""
    folder, draw = tmp_path_factory.mktemp("data"), random.Random(5)
    words = "the cat sat on a mat and saw seven red birds fly over the old stone house by the river".split()

    def text() -> str:
        return " ".join(draw.choices(words, k=draw.randint(2, 9)))

    for name, count in (("train-0", 7), ("train-1", 30), ("train-2", 2), ("more", 11)):
        rows = [
            {"prompt": f"{text()} {name}-{n}?", "negatives": [text() for _ in range(draw.randint(1, 3))],
             "positives": [text()]} for n in range(count)
        ]  # fmt: skip
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def write(folder: Path, model: Path, data: Path, streaming: str = "always", objective: str = "dpo") -> Path:
    file = folder / f"{objective}-{streaming}.yaml"
    feed = "streaming: always, shuffle_buffer: 8" if streaming == "always" else "streaming: never"
    file.write_text(RECIPE.format(model=model, data=data, feed=feed, objective=objective))
    return file


def timeless(folder: Path) -> list[dict]:
    """The metrics of a run without what depends on the machine's speed, and on what its store held."""
    leave = {"tokens_per_second", "reference/forwards", "guard/share"}
    return [{key: value for key, value in line.items() if key not in leave} for line in metrics(folder)]


def became(folder: Path) -> dict:
    """What `data.json` says: the first places, too, are the same whoever read."""
    return json.loads((folder / "data.json").read_text())


@pytest.fixture(scope="module")
def alone(tiny_model, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    return trained(write(folder, tiny_model, data), folder / "run", TRAIN)


@pytest.fixture(scope="module")
def on_two(tiny_model, data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    return trained(write(folder, tiny_model, data), folder / "run", TWO_RANKS)


def test_two_ranks_train_the_same_steps(alone, on_two):
    other = on_two
    assert losses(other) == pytest.approx(losses(alone), abs=1e-5) and len(losses(alone)) == STEPS
    assert len({round(loss, 4) for loss in losses(alone)}) == STEPS, "steps too alike to tell them apart"
    assert became(other) == became(alone) and became(alone)["dropped"]


def test_what_became_of_the_rows_is_told(alone):
    """96 prompts of 12 steps: every row that came is counted, those held out with their places."""
    told = json.loads((alone / "data.json").read_text())
    assert told["rows_used"] == 96
    assert told["rows_read"] == 96 + told["dropped"]["held out"]["count"]
    assert all(place.rpartition(":")[2].isdigit() for place in told["dropped"]["held out"]["first"])
    epochs = {Path(title).name: number for title, number in told["epochs"].items()}
    assert epochs["train-*.jsonl"] > 1.8 and 0.9 < epochs["more.jsonl"] < 2


def kill_somewhere(command: list[str], recipe: Path, folder: Path, draw: random.Random) -> int:
    """Starts a run and kills it at a random moment after its first checkpoint; the steps it had done."""
    process = start(command, recipe, f"output={folder}")
    deadline = time.monotonic() + 120
    while not any((folder / "checkpoints").glob("step-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    time.sleep(draw.random() * 1.5)
    done = process.poll() is not None
    kill(process) if not done else process.communicate()
    return len(metrics(folder))


@pytest.mark.parametrize("command", [TRAIN, TWO_RANKS], ids=["one-process", "two-ranks"])
@pytest.mark.parametrize("streaming", ["always", "never"])
def test_killed_at_random_moments_and_resumed(command, streaming, alone, on_two, tiny_model, data, tmp_path):
    """To the last bit as the run that nobody killed; each time killed somewhere else, also within a checkpoint."""
    recipe, draw = write(tmp_path, tiny_model, data, streaming), random.Random(f"{streaming}{len(command)}")
    whole = alone if command == TRAIN else on_two
    if streaming == "never":
        whole = trained(recipe, tmp_path / "whole", command)
    killed = tmp_path / "killed"
    steps = [kill_somewhere(command, recipe, killed, draw)]
    train(command, recipe, f"output={killed}", "train.resume=true")
    assert timeless(killed) == timeless(whole), f"killed after {steps} steps"
    assert became(killed) == became(whole)


def test_resumed_on_another_number_of_ranks(alone, on_two, tiny_model, data, tmp_path):
    recipe, again = write(tmp_path, tiny_model, data), tmp_path / "again"
    kept = sorted((on_two / "checkpoints").glob("step-*"))
    assert [path.name for path in kept] == ["step-11", "step-12"]
    train(TRAIN, recipe, f"output={again}", f"train.resume={kept[0]}")
    assert losses(again)[-1] == pytest.approx(losses(alone)[-1], abs=1e-5)


def test_samples_of_a_stream(tiny_model, data, tmp_path):
    """D2O draws for three steps at a time on two ranks, is killed, and goes on to the last bit."""
    recipe = write(tmp_path, tiny_model, data, objective="d2o")
    options = ("sampling={k: 2, max_new_tokens: 6, every: 3}", "train.max_steps=7")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    trained(recipe, whole, TWO_RANKS, *options)
    process = start(TWO_RANKS, recipe, f"output={killed}", *options)
    while len(metrics(killed)) < 5 if (killed / "metrics.jsonl").exists() else True:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    kill(process)
    train(TWO_RANKS, recipe, f"output={killed}", *options, "train.resume=true")
    assert timeless(killed) == timeless(whole) and len(timeless(whole)) == 7


def test_references_of_a_stream_are_built_ahead(tiny_model, data, tmp_path):
    """`align ref build` scores the steps of the run; the run then asks nothing."""
    recipe = write(tmp_path, tiny_model, data)
    build = [sys.executable, "-m", "align.cli", "ref", "build"]
    options = (f"reference.store={tmp_path / 'store'}", f"output={tmp_path / 'run'}", "train.save_every=0")
    built = run(build, recipe, *options)
    assert built.returncode == 0, built.stderr[-2000:]
    folder = trained(recipe, tmp_path / "run", TRAIN, *options)
    assert [line["reference/forwards"] for line in metrics(folder)] == [0] * STEPS


def test_a_setting_that_would_lose_the_place(alone, tiny_model, data, tmp_path):
    memory = write(tmp_path, tiny_model, data, "never")
    result = run(TRAIN, memory, f"output={tmp_path / 'other'}", f"train.resume={alone / 'checkpoints' / 'step-11'}")
    assert result.returncode == 2, result.stderr[-2000:]
    assert "data.streaming: the checkpoint's run streamed its rows; resume with the same setting" in result.stderr


def test_a_row_that_breaks_in_the_middle_of_a_run(tiny_model, data, tmp_path):
    """Met at step 70 or so of a stream: one line, exit code 2, and what was trained is kept."""
    rows = [{"prompt": f"p{n}", "positives": ["yes"], "negatives": ["no"]} for n in range(700)]
    lines = [json.dumps(row) for row in rows]
    lines[600] = '{"prompt": "p600", "positives": ["yes"], "negatives": 7}'
    (tmp_path / "my.jsonl").write_text("\n".join(lines))
    recipe = write(tmp_path, tiny_model, data)
    options = (f"data.sources=[{tmp_path / 'my.jsonl'}]", "train.max_steps=90", "train.save_every=5")
    result = run(TRAIN, recipe, f"output={tmp_path / 'run'}", *options)
    assert result.returncode == 2, result.stderr[-2000:]
    assert "my.jsonl:601: 'negatives' is a number, not a list of texts; mend it, or use the good rows" in result.stderr
    assert "Traceback" not in result.stderr
    assert len(metrics(tmp_path / "run")) > 20 and any((tmp_path / "run" / "checkpoints").glob("step-*"))
    mended = run(TRAIN, recipe, f"output={tmp_path / 'skip'}", *options, "data.on_bad_rows=skip")
    assert mended.returncode == 0, mended.stderr[-2000:]
    assert json.loads((tmp_path / "skip" / "data.json").read_text())["dropped"]["broken"]["count"] == 1
