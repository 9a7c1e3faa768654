"""`align sample`, `judge` and `iterate` as a user runs them: killed anywhere, and what is told about mistakes."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from align.cli import run as align
from align.errors import UserError
from tests import rollout_worlds
from tests.commands import ROOT, kill, run, start
from tests.rollout_worlds import lines

ALIGN = [sys.executable, "-m", "align.cli"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    return rollout_worlds.make(tmp_path_factory.mktemp("commands"))


def made(output: Path) -> dict[str, bytes]:
    """Everything that is written line by line, and the weights at the end."""
    files = [*output.rglob("*.jsonl"), *output.rglob("adapter_model.safetensors"), output / "pass_at_k.json"]
    return {
        str(file.relative_to(output)): file.read_bytes()
        for file in files
        if "checkpoints" not in file.parts and file.name != "metrics.jsonl"
    }


@pytest.mark.slow
def test_killed_in_every_stage_it_comes_to_the_same_end(recipe, tmp_path):
    """SIGKILL as soon as a stage has left something; gone on with each time from there."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = run([*ALIGN, "iterate"], recipe, "--rounds", 1, f"output={whole}")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "held-out prompts, 1 seed(s)" in done.stdout and "round 1: nll minus before" in done.stdout
    signs = ["warm/checkpoints/step-1", "round-0/heldout.jsonl", "round-0/rollouts.jsonl",
             "round-0/judgements-rollout.jsonl", "round-0/train/checkpoints/step-1",
             "round-0/against-0/metrics.jsonl"]  # fmt: skip
    for sign in signs:
        process = start([*ALIGN, "iterate"], recipe, "--rounds", 1, f"output={killed}")
        deadline = time.monotonic() + 120
        while not (killed / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert (killed / sign).exists(), process.communicate()
        kill(process)
    last = run([*ALIGN, "iterate"], recipe, "--rounds", 1, f"output={killed}")
    assert last.returncode == 0, last.stderr[-3000:]
    ours, theirs = made(killed), made(whole)
    assert len(ours) >= 9 and ours.keys() == theirs.keys()
    moved = [name for name in ours if ours[name].replace(bytes(killed), b"") != theirs[name].replace(bytes(whole), b"")]
    assert not moved


@pytest.mark.slow
def test_seeds_share_the_start_and_are_pooled(recipe, tmp_path):
    done = run([*ALIGN, "iterate"], recipe, f"output={tmp_path / 'out'}", "--seeds", 2, "rollouts.against=[]")
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "out/pass_at_k.json").read_text())
    assert found["seeds"] == 2 and len(found["policies"]["before"]["counts"]) == 2
    one, two = (lines(tmp_path / f"out/seed-{seed}/round-0/rollouts.jsonl") for seed in (0, 1))
    assert {row["key"] for row in one} != {row["key"] for row in two}
    measured = [lines(tmp_path / f"out/seed-{seed}/round-0/heldout.jsonl") for seed in (0, 1)]
    assert {row["key"] for row in measured[0]} == {row["key"] for row in measured[1]}  # the same prompts
    assert measured[0] != measured[1]


def test_sample_judge_and_score(recipe, tmp_path, capsys):
    """One stage after the other; then judges are measured by what another one said."""
    output = f"output={tmp_path / 'out'}"
    with pytest.raises(UserError, match="holds no roll-outs; align sample RECIPE first"):
        align(["judge", str(recipe), output])
    align(["sample", str(recipe), output])
    align(["judge", str(recipe), output])
    shown = capsys.readouterr().out
    assert "rollouts.jsonl: " in shown and '"right": ' in shown and '"steps_of_wrong_answers"' in shown
    judged = tmp_path / "out/round-0/judged.jsonl"
    rows = lines(judged)
    for row in rows:  # as if people had labelled the steps: all long ones are good
        for one in row["responses"]:
            ends = [step["end"] for step in one.get("steps", [])]
            scores = rollout_worlds.long_steps(None, one["text"], ends)
            one["steps"] = [{"end": e, "label": 1 if s >= 0.5 else -1} for e, s in zip(ends, scores, strict=True)]
    judged.write_text("".join(json.dumps(row) + "\n" for row in rows))
    align(["judge", str(recipe), output, "--score", str(judged)])
    told = json.loads(capsys.readouterr().out[-3000:].partition("{")[2].join(["{", ""]))
    assert told["function"]["accuracy"] == 1.0 and told["function"]["first_error_accuracy"] == 1.0
    assert told["rollout"]["steps"] == told["function"]["steps"] > 5
    assert told["rollout"]["accuracy"] < 1.0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample", "recipes/bcpg.yaml"], "has no section rollouts"),
        (["train", "{recipe}"], "its rows are yet to be sampled; align iterate"),
        (["judge", "{recipe}", "judges=null"], "judges: names no judge"),
        (["judge", "{recipe}", "--score", "none.jsonl"], "none.jsonl: no such file"),
        (["judge", "{recipe}", "--score", "{rows}"], "no answer has steps labelled up to its first error"),
        (["iterate", "{recipe}", "--rounds", "0"], "is no whole number from 1 on"),
        (["iterate", "{recipe}", "--rounds", "1", "sampling.kk=3"], "sampling.kk: unknown key; did you mean 'k'?"),
        (["iterate", "{recipe}", "--rounds", "1", "fast"], "unrecognized arguments: fast"),
    ],
)
def test_mistakes_are_told(recipe, words, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    named = {"recipe": recipe, "rows": recipe.parent / "rows.jsonl"}
    with pytest.raises(UserError) as error:
        align([word.format(**named) for word in words])
    assert message in str(error.value)


def test_roll_outs_run_on_one_process(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="tried on one process only"):
        align(["sample", str(recipe)])
