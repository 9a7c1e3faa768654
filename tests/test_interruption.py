"""Ctrl-C and preemption: a run that is told to end keeps what it has learned, and goes on with it to the same end."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest

from align.errors import Interrupted
from align.interruption import Interruption
from tests.commands import TRAIN, TWO_RANKS, losses, start, train, trained, wait_for_step

RECIPE = """
name: told
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{data}], max_length: 128}}
objective: {{name: dpo}}
train:     {{max_steps: 60, prompts_per_step: 8, precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""


@pytest.fixture(scope="module")
def recipe(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "told.yaml"
    file.write_text(RECIPE.format(model=tiny_model, data=uneven_rows))
    return file


def test_the_first_signal_is_noted_and_the_next_one_ends_at_once():
    before = signal.getsignal(signal.SIGTERM)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.noted == signal.SIGTERM
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_told_to_end_goes_on_to_the_same_end(number, recipe, tmp_path):
    whole = trained(recipe, tmp_path / "whole", TRAIN)
    process = start(TRAIN, recipe, f"output={tmp_path / 'told'}")
    wait_for_step(process, tmp_path / "told", 3)
    process.send_signal(number)
    err = process.communicate()[1]
    done = len(losses(tmp_path / "told"))
    assert process.returncode == 128 + number and 3 <= done < 60
    told = f"interrupted after step {done}: checkpoint saved; go on with train.resume=true"
    assert err.splitlines()[-1] == told and "Traceback" not in err
    assert not (tmp_path / "told" / "final").exists()
    train(TRAIN, recipe, f"output={tmp_path / 'told'}", "train.resume=true")
    assert losses(tmp_path / "told") == losses(whole)  # to the last bit


@pytest.mark.slow
def test_one_rank_that_is_told_to_end_ends_all_behind_the_same_step(recipe, tmp_path):
    run = tmp_path / "run"
    process = start(TWO_RANKS, recipe, f"output={run}")
    wait_for_step(process, run, 3)
    workers = [one for one in psutil.Process(process.pid).children() if "align/train.py" in one.cmdline()]
    workers[1].send_signal(signal.SIGTERM)
    out, err = process.communicate()
    done = len(losses(run))
    assert process.returncode != 0 and f"interrupted after step {done}" in err, (out, err)
    assert [path.name for path in (run / "checkpoints").iterdir()] == [f"step-{done}"]


@pytest.mark.slow
def test_before_it_trains_a_run_ends_with_one_line(recipe, tmp_path):
    process = start(TRAIN, recipe, f"output={tmp_path / 'run'}")
    assert process.stdout.readline()  # what it says before it loads the rows
    process.send_signal(signal.SIGTERM)
    err = process.communicate()[1]
    assert process.returncode == 128 + signal.SIGTERM and err.splitlines()[-1].startswith("interrupted")
