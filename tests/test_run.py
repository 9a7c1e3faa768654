"""A run folder survives kills: nothing half-written, nothing overwritten, nothing forgotten that was kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from align.data.options import Data
from align.errors import UserError
from align.run import FIXED_FOR_A_RUN, RunFolder, whole_folder, write_json, write_text
from align.schema import field_names


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run folder that has not been made yet."""
    return RunFolder(tmp_path / "runs" / "mine")


def checkpoint(run: RunFolder, name: str) -> Path:
    folder = run.checkpoints / name
    folder.mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    return folder


def metrics(run: RunFolder, *lines: object, cut_off: str = "") -> None:
    run.path.mkdir(parents=True, exist_ok=True)
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines) + cut_off)


def everything_in(folder: Path) -> set[str]:
    """Paths of all files and folders, hidden ones too."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


# Names


def test_names_that_users_rely_on(tmp_path):
    run = RunFolder(str(tmp_path))
    names = (run.recipe, run.metrics, run.checkpoint(12), run.final, run.data, run.environment)
    assert [path.relative_to(tmp_path).as_posix() for path in names] == [
        "recipe.yaml", "metrics.jsonl", "checkpoints/step-12", "final", "data.json", "environment.json",
    ]  # fmt: skip


def test_looking_at_a_run_makes_nothing(run, tmp_path):
    assert (run.newest_checkpoint(), run.checkpoint_steps(), run.finished()) == (None, [], False)
    assert run.resume_from(True) is None and run.resume_from(False) is None
    run.forget_after(3)
    assert everything_in(tmp_path) == set()


# Checkpoints


def test_newest_checkpoint_is_by_number(run):
    for step in (9, 100, 20):
        checkpoint(run, f"step-{step}")
    assert run.checkpoint_steps() == [9, 20, 100]
    assert run.newest_checkpoint() == run.checkpoint(100)


@pytest.mark.parametrize("name", [".step-30.4711", "step-30.tmp", "step-", "step-x", "tmp-step-30", "checkpoint-30"])
def test_incomplete_checkpoints_are_ignored(run, name):
    checkpoint(run, name)
    assert (run.newest_checkpoint(), run.resume_from(True)) == (None, None)
    checkpoint(run, "step-2")
    assert (run.checkpoint_steps(), run.resume_from(True)) == ([2], run.checkpoint(2))


def test_resume_from_a_named_checkpoint(run):
    older = checkpoint(run, "step-2")
    checkpoint(run, "step-4")
    metrics(run, {"step": 1})
    assert run.resume_from(str(older)) == older


@pytest.mark.parametrize("exists", [True, False])
def test_resume_from_what_is_no_checkpoint(run, tmp_path, exists):
    folder = tmp_path / "other"
    if exists:
        folder.mkdir()
    with pytest.raises(UserError) as error:
        run.resume_from(str(folder))
    expected = f"train.resume: {folder} is no checkpoint; name a folder checkpoints/step-N of a run"
    assert str(error.value) == expected


# A run that is there already


@pytest.mark.parametrize("left", ["metrics", "final"])
def test_a_run_is_not_overwritten(run, left):
    if left == "metrics":
        metrics(run, {"step": 1})
    else:
        run.final.mkdir(parents=True)
    with pytest.raises(UserError) as error:
        run.resume_from(False)
    assert str(error.value) == (
        f"output: {run.path} already holds a run; set train.resume=true to go on with it, or another output="
    )
    assert run.resume_from(True) is None


def test_an_empty_folder_is_no_run(run):
    run.path.mkdir(parents=True)
    assert run.resume_from(False) is None


def test_finished_when_the_result_is_there(run):
    metrics(run, {"step": 1})
    assert not run.finished()
    run.final.mkdir()
    assert run.finished()


# Going on with a run under another recipe

RECIPE = "model: {path: a}\ntrain: {learning_rate: 0.1, seed: 0, epochs: 1}\neval: {every: 2, holdout: 0.1}\n"


@pytest.mark.parametrize("change", [("epochs: 1", "epochs: 2"), ("every: 2", "every: 5"), ("seed: 0", "seed: 0")])
def test_a_run_may_be_gone_on_with_longer_and_measured_otherwise(run, change):
    write_text(run.recipe, RECIPE)
    run.check_same(RECIPE.replace(*change))  # raises nothing
    assert run.recipe.read_text() == RECIPE


def test_every_key_of_data_but_the_layout_is_fixed():
    fixed = {path[1] for path in FIXED_FOR_A_RUN if path[0] == "data"}
    assert fixed == set(field_names(Data)) - {"layout"}


def test_a_run_is_not_gone_on_with_as_another_run(run):
    write_text(run.recipe, RECIPE)
    with pytest.raises(UserError) as error:
        run.check_same(RECIPE.replace("path: a", "path: b").replace("0.1, seed: 0", "0.2, seed: 1"))
    fix = "use another output, or the recipe of the run"
    assert sorted(str(error.value).split("\n")) == [
        f"{run.recipe}: model was {{'path': 'a'}}, now {{'path': 'b'}}; {fix}",
        f"{run.recipe}: train.learning_rate was 0.1, now 0.2; {fix}",
        f"{run.recipe}: train.seed was 0, now 1; {fix}",
    ]


def test_a_run_that_never_wrote_its_recipe_can_be_gone_on_with(run, tmp_path):
    run.check_same(RECIPE)
    assert everything_in(tmp_path) == set()


# Metrics


def test_metrics_come_back_as_they_were_added(run):
    metrics(run)
    lines = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 5e-324, "note": "ü\nx"}, {"step": 2, "eval": {"a": 1}}]
    for line in lines:
        run.add_metrics(line)
    assert list(run.read_metrics()) == lines
    assert len(run.metrics.read_text().splitlines()) == 3


@pytest.mark.parametrize("cut_off", ['{"step": 3, "lo', '{"step": 3}'])
def test_a_last_line_cut_off_by_a_kill_is_no_line(run, cut_off):
    """Also where what is left happens to be valid: `"loss": 12` may have been `"loss": 12.5`."""
    metrics(run, {"step": 1}, {"step": 2}, cut_off=cut_off)
    assert list(run.read_metrics()) == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("step, kept", [(0, []), (1, [1]), (2, [1, 2, 2]), (3, [1, 2, 2, 3]), (9, [1, 2, 2, 3])])
@pytest.mark.parametrize("cut_off", ["", '{"step": 4, "lo'])
def test_forget_after(run, step, kept, cut_off):
    metrics(run, {"step": 1}, {"step": 2}, {"step": 2, "eval": 1}, {"step": 3}, cut_off=cut_off)
    run.forget_after(step)
    assert [line["step"] for line in run.read_metrics()] == kept
    assert everything_in(run.path) == {"metrics.jsonl"}


def test_the_guards_events_are_forgotten_with_the_metrics(run):
    metrics(run, {"step": 1}, {"step": 2}, {"step": 3})
    for step in (1, 3):
        run.add_guard_event({"step": step, "action": "warn"})
    run.forget_after(2)
    assert list(run.read_guard()) == [{"step": 1, "action": "warn"}]


def test_metrics_go_on_on_a_line_of_their_own_after_forgetting(run):
    metrics(run, {"step": 1, "loss": 0.1 + 0.2}, cut_off='{"step": 2, "lo')
    run.forget_after(5)
    run.add_metrics({"step": 2})
    assert list(run.read_metrics()) == [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2}]


def test_forgetting_keeps_the_bytes_of_what_it_keeps(run):
    lines = [{"step": 1, "loss": 1 / 3, "note": "ü"}, {"step": 2, "loss": float("nan")}]
    metrics(run, *lines, {"step": 3})
    before = run.metrics.read_text().splitlines()
    run.forget_after(2)
    assert run.metrics.read_text().splitlines() == before[:2]


# Whole files


def test_write_text_makes_folders_and_replaces(tmp_path):
    file = tmp_path / "a" / "b" / "note.txt"
    write_text(file, "first, long text")
    write_text(file, "grün\n")
    assert file.read_bytes() == "grün\n".encode()
    assert everything_in(tmp_path) == {"a", "a/b", "a/b/note.txt"}


def test_write_text_that_fails_leaves_the_old_file_and_no_half_one(tmp_path):
    file = tmp_path / "note.txt"
    write_text(file, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "new " * 10_000 + "\ud800")  # half a character: fails while it is written
    assert file.read_text() == "old"
    assert everything_in(tmp_path) == {"note.txt"}


def test_write_text_takes_its_name_only_when_whole(tmp_path, monkeypatch):
    file, seen = tmp_path / "note.txt", []
    replace = os.replace

    def look(source: Path, target: Path) -> None:
        seen.append((Path(source).read_text(), file.exists(), Path(source).parent))
        replace(source, target)

    monkeypatch.setattr("align.run.os.replace", look)
    write_text(file, "text")
    assert seen == [("text", False, tmp_path)]  # same folder: a rename across file systems would be a copy


def test_write_json_is_readable_and_ends_its_line(tmp_path):
    write_json(tmp_path / "data.json", {"wörter": [1, 2]})
    text = (tmp_path / "data.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"wörter": [1, 2]} and "wörter" in text and text.endswith("}\n")


# Whole folders


def test_whole_folder_appears_when_complete(tmp_path):
    target = tmp_path / "checkpoints" / "step-4"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("1")
        assert not target.exists() and folder.parent == target.parent
        assert not RunFolder(tmp_path).checkpoint_steps()
    assert everything_in(tmp_path) == {"checkpoints", "checkpoints/step-4", "checkpoints/step-4/weights"}


def test_whole_folder_that_fails_leaves_the_old_one(tmp_path):
    target = tmp_path / "final"
    with whole_folder(target) as folder:
        (folder / "weights").write_text("old")
    with pytest.raises(RuntimeError, match="disk"), whole_folder(target) as folder:
        (folder / "weights").write_text("new")
        raise RuntimeError("disk full")
    assert (target / "weights").read_text() == "old"
    assert everything_in(tmp_path) == {"final", "final/weights"}


def test_whole_folder_that_fails_leaves_none_where_there_was_none(tmp_path):
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "final"):
        raise KeyboardInterrupt
    assert everything_in(tmp_path) == set()


def test_whole_folder_replaces_all_of_the_old_one(tmp_path):
    for name in ("old", "new"):
        with whole_folder(tmp_path / "final") as folder:
            (folder / name).touch()
    assert everything_in(tmp_path) == {"final", "final/new"}


def test_whole_folder_takes_nothing_over_from_a_killed_attempt(tmp_path):
    target = tmp_path / "final"
    with whole_folder(target) as folder:
        temporary = folder.name
    target.rename(tmp_path / temporary)  # what a kill would have left, under the name this process uses
    (tmp_path / temporary / "half").touch()
    with whole_folder(target) as folder:
        (folder / "whole").touch()
    assert everything_in(tmp_path) == {"final", "final/whole"}
