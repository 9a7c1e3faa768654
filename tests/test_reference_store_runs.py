"""Runs with a reference store, through the real command line, on a tiny random model."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

import pytest

from tests.commands import (
    TRAIN,
    TWO_RANKS,
    assert_same_course,
    deepspeed,
    kill_after_step,
    losses,
    metrics,
    run,
    start,
    train,
    trained,
)

pytestmark = pytest.mark.slow

STEPS = 6

RECIPE = """
name: stored
model:     {{path: {model}, adapter: {{rank: 4}}}}
data:      {{sources: [{data}], max_length: 128}}
retain:    {{sources: [{data}], weight: 0.5, prompts_per_step: 3}}
reference: {{store: {store}}}
objective: {{name: dpo, beta: 0.1}}
train:     {{learning_rate: 1.0e-2, max_steps: {steps}, prompts_per_step: 8, tokens_per_device: 800, precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""
REF = [sys.executable, "-m", "align.cli", "ref"]
FULL = ("model.adapter=null", "reference.policy=frozen", "train.learning_rate=1e-3")


def write(folder: Path, model: Path, data: Path) -> Path:
    file = folder / "stored.yaml"
    file.write_text(RECIPE.format(model=model, data=data, steps=STEPS, store=folder / "store"))
    return file


@pytest.fixture
def recipe(tiny_model, uneven_rows, tmp_path) -> Path:
    """A recipe with an empty store of its own."""
    return write(tmp_path, tiny_model, uneven_rows)


@pytest.fixture(scope="module")
def live(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    """The run without a store."""
    folder = tmp_path_factory.mktemp("live")
    return trained(write(folder, tiny_model, uneven_rows), folder / "run", TRAIN, "reference.store=off")


@pytest.fixture(scope="module")
def filled(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    """A recipe whose store a first run, `first` beside it, has filled."""
    folder = tmp_path_factory.mktemp("filled")
    trained(write(folder, tiny_model, uneven_rows), folder / "first", TRAIN)
    return folder / "stored.yaml"


def forwards(run_folder: Path) -> list[int]:
    return [line["reference/forwards"] for line in metrics(run_folder)]


def same_course(run_folder: Path, other: Path, tolerance: float = 1e-5) -> None:
    """At the first step every margin is 0, and the last bit of a sum over another micro-batch decides `accuracy`."""
    assert_same_course(run_folder, other, tolerance, frozenset({"accuracy"}))


def part_files(recipe: Path) -> list[Path]:
    return sorted((recipe.parent / "store").glob("*/part-*"))


def test_stored_and_live_runs_have_the_same_course(filled, live, tmp_path):
    first, second = filled.parent / "first", trained(filled, tmp_path / "second", TRAIN)
    for one in (first, second):
        same_course(one, live)
    assert all(count > 0 for count in forwards(live)), "without a store every step asks the reference"
    assert all(forwards(first)[:3]) and not any(forwards(first)[3:]), "an epoch is three steps"
    assert not any(forwards(second))


@pytest.mark.parametrize(
    "changes",
    [
        ("train.learning_rate=3e-3", "objective.beta=0.5", "model.adapter.rank=2", "train.seed=9"),
        ("objective={name: npo}",),
        ("objective={name: sppo}", "train.tokens_per_device=2000", "train.prompts_per_step=6", "data.layout=padded"),
        FULL,
    ],
    ids=["hyper-parameters", "another-objective", "another-cut", "all-weights"],
)
def test_a_second_run_asks_no_reference(changes, filled, tmp_path):
    run_folder = trained(filled, tmp_path / "run", TRAIN, *changes)
    assert len(metrics(run_folder)) == STEPS and not any(forwards(run_folder))
    moved = [line["log_ratio/negative"] for line in metrics(run_folder)]
    assert moved[0] == pytest.approx(0, abs=1e-5) and abs(moved[-1]) > 1e-3


def test_another_model_finds_nothing(filled, uneven_rows, tmp_path):
    from tests import tiny

    tiny.save(tmp_path / "model", seed=1)
    run_folder = trained(filled, tmp_path / "run", TRAIN, f"model.path={tmp_path / 'model'}", "train.max_steps=2")
    assert all(forwards(run_folder)) and metrics(run_folder)[0]["log_ratio/negative"] == pytest.approx(0, abs=1e-5)


def test_all_weights_with_a_frozen_copy(recipe, tmp_path):
    """The copy is loaded when something is missing; without that the run is the same."""
    live, first, second = (tmp_path / name for name in ("live", "first", "second"))
    trained(recipe, live, TRAIN, *FULL, "reference.store=off")
    trained(recipe, first, TRAIN, *FULL)
    trained(recipe, second, TRAIN, *FULL)
    same_course(first, live)
    same_course(second, live)
    assert all(forwards(first)[:3]) and not any(forwards(second))


def test_all_weights_in_bf16(recipe, tmp_path):
    """The frozen copy is loaded, and tried in the packed layout, where autocast is on."""
    options = (*FULL, "train.precision=bf16")
    first, second = (trained(recipe, tmp_path / name, TRAIN, *options) for name in ("first", "second"))
    assert all(forwards(first)[:3]) and not any(forwards(second))
    assert losses(first) == pytest.approx(losses(second), abs=0.02)
    assert metrics(first)[0]["log_ratio/negative"] == pytest.approx(0, abs=0.3), "the sum over a response"


def test_a_damaged_store_heals(filled, tmp_path, tiny_model, uneven_rows):
    """A bit of one record, the end of another file, and a foreign file: some forwards, the same course, then none."""
    recipe = write(tmp_path, tiny_model, uneven_rows)
    shutil.copytree(filled.parent / "store", tmp_path / "store")
    part = max(part_files(recipe), key=lambda file: file.stat().st_size)
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 16
    part.write_bytes(data[:-5])
    part.with_name("part-foreign.bin").write_bytes(bytes(range(256)) * 8)
    assert run(REF, "verify", tmp_path / "store").returncode == 1
    healed = trained(recipe, tmp_path / "healed", TRAIN)
    same_course(healed, filled.parent / "first")
    assert 1 <= sum(forwards(healed)) <= 2
    assert not any(forwards(trained(recipe, tmp_path / "after", TRAIN)))


@pytest.mark.parametrize("command", [TWO_RANKS, deepspeed("zero3.json")], ids=["ddp", "zero3"])
def test_two_ranks_share_a_store(command, recipe, live, tmp_path):
    """Each rank computes and writes its share; then two with other shares ask nothing, nor does one process."""
    first = trained(recipe, tmp_path / "first", command)
    same_course(first, live)
    assert all(forwards(first)[:3]) and not any(forwards(first)[3:]), "each finds what the other wrote"
    assert len(part_files(recipe)) == 2
    for name, one in (("again", command), ("alone", TRAIN)):
        second = trained(recipe, tmp_path / name, one, "train.tokens_per_device=3000")
        same_course(second, live)
        assert not any(forwards(second))


@pytest.mark.parametrize("command", [TWO_RANKS, deepspeed("zero3.json")], ids=["ddp", "zero3"])
def test_one_rank_has_what_the_other_lacks(command, recipe, live, tmp_path):
    """Nobody waits for anybody: half of the store is lost."""
    trained(recipe, tmp_path / "first", command)
    part_files(recipe)[0].unlink()
    second = trained(recipe, tmp_path / "second", command)
    same_course(second, live)
    assert 0 < sum(forwards(second)) <= sum(forwards(tmp_path / "first"))


def test_two_runs_share_a_store_at_once(recipe, live, tmp_path):
    both = [start(TRAIN, recipe, f"output={tmp_path / name}") for name in ("one", "other")]
    for process in both:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err[-2000:]
    for name in ("one", "other"):
        same_course(tmp_path / name, live)
    assert run(REF, "verify", tmp_path / "store").returncode == 0


@pytest.mark.parametrize("command", [TRAIN, TWO_RANKS], ids=["one", "two-ranks"])
def test_killed_and_resumed_is_bit_equal(command, recipe, tmp_path):
    """The resumed run finds what the killed one stored, and is the run that was never killed."""
    longer = ("train.max_steps=16", "train.save_every=2", "train.prompts_per_step=5", "train.tokens_per_device=400")
    whole = trained(recipe, tmp_path / "whole", command, *longer, f"reference.store={tmp_path / 'other-store'}")
    killed = tmp_path / "killed"
    process = start(command, recipe, f"output={killed}", *longer)
    kill_after_step(process, killed, random.randint(3, 9))
    train(command, recipe, f"output={killed}", *longer, "train.resume=true")
    assert losses(killed) == losses(whole)  # to the last bit
    assert not any(forwards(killed)[8:])


def test_resuming_without_the_store_or_with_another(recipe, live, tmp_path):
    trained(recipe, tmp_path / "run", TRAIN, "train.max_steps=2", "train.save_every=2")
    shutil.rmtree(tmp_path / "run" / "final")
    train(TRAIN, recipe, f"output={tmp_path / 'run'}", "train.resume=true", "reference.store=off")
    assert forwards(tmp_path / "run")[2:] == forwards(live)[2:]
    refused = run(TRAIN, recipe, f"output={tmp_path / 'run'}", "train.resume=true", "reference.store_dtype=float16")
    assert refused.returncode == 2 and "reference.store_dtype was 'float32'" in refused.stderr


def test_float16_is_close_and_its_second_run_the_same(recipe, live, tmp_path):
    first = trained(recipe, tmp_path / "first", TRAIN, "reference.store_dtype=float16")
    second = trained(recipe, tmp_path / "second", TRAIN, "reference.store_dtype=float16")
    same_course(first, live, 0.05)
    same_course(second, first)
    assert losses(first) != losses(live) and not any(forwards(second))


def test_a_full_disk_does_not_hurt_the_run(recipe, live, tmp_path):
    """No file may grow beyond 4 kB, as on a full disk: metrics and final model are smaller, the store is not."""
    limited = [sys.executable, "-c", LIMITED, str(tmp_path / "store")]
    printed = run(limited, recipe, f"output={tmp_path / 'run'}")
    assert printed.returncode == 0, printed.stderr[-2000:]
    told = [line for line in printed.stderr.splitlines() if line.startswith("reference.store:")]
    assert len(told) == 1 and "nothing more is stored" in told[0] and "File too large" in told[0]
    same_course(tmp_path / "run", live)
    assert all(forwards(tmp_path / "run"))
    assert run(REF, "verify", tmp_path / "store").returncode == 0


# Only writes to the store are limited: the limit of a process holds for all its files, and a model is larger.
LIMITED = """
import resource, sys
from align.reference.store import Store
whole, folder = Store._append, sys.argv.pop(1)
def limited(self, frames):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        return whole(self, frames)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
Store._append = limited
from align.errors import run_main
from align.train import main
run_main(main)
"""


def test_a_store_that_cannot_be_made_does_not_hurt_the_run(recipe, live, tmp_path):
    folder = tmp_path / "readonly"
    folder.touch()
    printed = run(TRAIN, recipe, f"output={tmp_path / 'run'}", f"reference.store={folder / 'store'}")
    assert printed.returncode == 0 and printed.stderr.count("nothing more is stored") == 1
    same_course(tmp_path / "run", live)


def test_build_then_train(recipe, live, tmp_path):
    """Rows that the run's steps do not reach are scored, too."""
    built = run(REF, "build", recipe, "train.max_steps=2")
    assert built.returncode == 0, built.stderr[-2000:]
    stat = run(REF, "stat", tmp_path / "store").stdout
    assert "1 references" in stat and "72 entries" in stat
    run_folder = trained(recipe, tmp_path / "run", TRAIN)
    same_course(run_folder, live)
    assert not any(forwards(run_folder))


def test_build_on_two_ranks(recipe, tmp_path):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    built = run([*launcher, "-m", "align.cli", "ref", "build"], recipe)
    assert built.returncode == 0, built.stderr[-2000:]
    assert len(part_files(recipe)) == 2
    again = run(REF, "build", recipe)
    assert " 0 forwards" in again.stdout and "72 responses" in again.stdout


def test_build_covers_mismatched_responses_and_the_writer(recipe, tmp_path):
    for objective in ("objective={name: kto}", "objective={name: topr}"):
        extra = ["reference.behavior=frozen"] if "topr" in objective else []
        assert run(REF, "build", recipe, objective, *extra).returncode == 0
        run_folder = trained(recipe, tmp_path / objective[17:20], TRAIN, objective, *extra)
        assert not any(forwards(run_folder)), objective


def test_samples_are_stored_as_they_are_drawn(recipe, tmp_path):
    """D2O: the first run stores its samples; the second one draws the same ones and asks nothing."""
    d2o = ("objective={name: d2o}", "sampling={k: 2, max_new_tokens: 8}")
    first = trained(recipe, tmp_path / "first", TRAIN, *d2o)
    second = trained(recipe, tmp_path / "second", TRAIN, *d2o, "train.learning_rate=3e-3", "objective.beta=0.2")
    assert all(forwards(first)[:3]) and not any(forwards(second))
