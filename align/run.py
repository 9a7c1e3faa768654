"""A run folder: the names of its files, what is written when, and reading it back.

Files are written to a temporary name and renamed, so that a killed run leaves none half-written;
`metrics.jsonl` grows line by line.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from align.errors import UserError, UserErrors, shorten

# What may not change when a run is gone on with; the rest (lengths, saving, evaluation, layout) may.
FIXED_FOR_A_RUN = [(name,) for name in ("model", "retain", "weights", "sampling", "objective")]
_DATA = ("sources", "nat", "max_length", "mix", "streaming", "shuffle_buffer", "on_bad_rows")  # not the layout
FIXED_FOR_A_RUN += [("data", key) for key in _DATA]
_REFERENCE = ("policy", "samples", "behavior", "teacher", "store_dtype")  # not the store
FIXED_FOR_A_RUN += [("reference", key) for key in _REFERENCE]
FIXED_FOR_A_RUN += [("train", "seed"), ("train", "prompts_per_step"), ("train", "learning_rate"), ("eval", "holdout")]
FIXED_FOR_A_RUN += [("guard", key) for key in ("prompts", "sources", "anchors")]  # what its start was measured on


_SECTIONS = ("model", "data", "objective", "train", "eval")  # of every resolved recipe

HEADS_FILE = "likelihood_ratio.json"  # beside saved adapters: which they are, and their base


def find_heads(folder: str | Path) -> Path | None:
    """The description of a run's two heads: in a folder of weights, or the final/ of a run folder; None if neither."""
    places = [Path(folder) / HEADS_FILE, Path(folder) / "final" / HEADS_FILE]
    return next((place for place in places if place.is_file()), None)


def _at(tree: dict, path: tuple[str, ...]) -> object:
    for key in path:
        tree = tree.get(key, {})
    return tree


class RunFolder:
    """The folder `output` of a recipe."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.recipe = self.path / "recipe.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.snapshots = self.path / "snapshots"
        self.samples = self.path / "samples"
        self.final = self.path / "final"
        self.data = self.path / "data.json"
        self.environment = self.path / "environment.json"
        self.evaluation = self.path / "evaluation.json"
        self.evaluations = self.path / "evaluations.json"  # of `align evaluate`
        self.guard = self.path / "guard.jsonl"  # its events
        self.progress = self.path / "progress.json"
        self.report = self.path / "report.html"
        self.card = self.path / "README.md"

    @property
    def weights(self) -> Path:
        """Where the finished weights lie: final/, or the folder itself, which `align merge` has written."""
        return self.final if self.final.is_dir() else self.path

    def resolved(self) -> dict:
        """The recipe that the run wrote, every value resolved. Raises UserError if it is damaged, or a user's own."""
        try:
            found = yaml.safe_load(self.recipe.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise UserError(str(self.recipe), f"is damaged: {shorten(error)}") from None
        sections = found if isinstance(found, dict) else {}
        lacking = next((name for name in _SECTIONS if not isinstance(sections.get(name), dict)), None)
        if lacking is not None:
            what = f"is no recipe as a run writes it: it has no section {lacking}"
            raise UserError(str(self.recipe), what, "name the folder that a run wrote (output)")
        return found

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step}"

    def checkpoint_steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending: an incomplete one never bears the name `step-N`."""
        names = [path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*")]
        return sorted(int(name) for name in names if name.isdigit())

    def snapshot(self, prompts: int) -> Path:
        return self.snapshots / f"prompts-{prompts}"

    def snapshot_prompts(self) -> list[int]:
        """After how many prompts the complete snapshots were taken, ascending."""
        names = [path.name.removeprefix("prompts-") for path in self.snapshots.glob("prompts-*")]
        return sorted(int(name) for name in names if name.isdigit())

    def newest_checkpoint(self) -> Path | None:
        steps = self.checkpoint_steps()
        return self.checkpoint(steps[-1]) if steps else None

    def resume_from(self, resume: bool | str) -> Path | None:
        """The checkpoint to go on from; None starts anew. Raises UserError if that would overwrite a run."""
        if isinstance(resume, str):
            folder = Path(resume)
            if not (folder / "trainer_state.json").is_file():
                raise UserError(
                    "train.resume", f"{folder} is no checkpoint", "name a folder checkpoints/step-N of a run"
                )
            return folder
        if not resume and (self.recipe.exists() or self.metrics.exists() or self.final.exists()):
            fix = "set train.resume=true to go on with it, or another output="
            raise UserError("output", f"{self.path} already holds a run", fix)
        return self.newest_checkpoint() if resume else None

    def begin_as(self, checkpoint: Path) -> None:
        """Takes over what another run had written up to its `checkpoint`; nothing if it is this one's."""
        other = RunFolder(checkpoint.parent.parent)
        if self.evaluation.exists() or other.path.resolve() == self.path.resolve():
            return
        for name in ("environment", "evaluation", "metrics"):
            if not getattr(other, name).exists():
                what = f"{shorten(str(other.path))} has no {getattr(other, name).name}"
                raise UserError("train.resume", what, "name a checkpoint where its run left it")
        for name in ("environment", "evaluation", "metrics"):
            write_text(getattr(self, name), getattr(other, name).read_text(encoding="utf-8"))
        if other.guard.exists():
            write_text(self.guard, other.guard.read_text(encoding="utf-8"))

    def check_same(self, recipe_yaml: str) -> None:
        """Raises UserErrors if a run is gone on with under a recipe that would make it another run."""
        if not self.recipe.exists():
            return
        before, now = yaml.safe_load(self.recipe.read_text(encoding="utf-8")), yaml.safe_load(recipe_yaml)
        fix = "use another output, or the recipe of the run"
        errors = [
            UserError(f"{self.recipe}", f"{'.'.join(path)} was {_at(before, path)!r}, now {_at(now, path)!r}", fix)
            for path in FIXED_FOR_A_RUN
            if _at(before, path) != _at(now, path)
        ]
        if errors:
            raise UserErrors(errors)

    def finished(self) -> bool:
        return self.final.is_dir()

    def forget_after(self, step: int) -> None:
        """Drops the metrics and the guard's events behind `step`: a resumed run writes them again."""
        for file in (self.metrics, self.guard):
            if file.exists():
                kept = [line for line in _lines(file) if line.get("step", 0) <= step]
                write_text(file, "".join(json.dumps(line) + "\n" for line in kept))

    def read_metrics(self) -> Iterator[dict]:
        """The lines of metrics.jsonl; a last line cut off by a kill is left out."""
        return _lines(self.metrics)

    def read_guard(self) -> Iterator[dict]:
        """The guard's events; none where there is no file."""
        return _lines(self.guard) if self.guard.exists() else iter(())

    def add_metrics(self, values: dict) -> None:
        _add_line(self.metrics, values)

    def add_guard_event(self, event: dict) -> None:
        """`event` has the keys step, watch, value, budget, action, text."""
        _add_line(self.guard, event)


def _lines(file: Path) -> Iterator[dict]:
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def _add_line(path: Path, values: dict) -> None:
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Writes a whole file or nothing. Raises UserError where that cannot be."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)  # what a failed write left (a full disk)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what, fix = f"cannot be written: {shorten(error)}", "make room there, or name another place"
        raise UserError(shorten(str(path), 160), what, fix) from error


def read_json(path: Path) -> dict:
    """The object in a JSON file; {} if there is no file. Raises UserError if it is damaged."""
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(path), f"is damaged: {shorten(error)}") from None
    if not isinstance(found, dict):
        raise UserError(str(path), "is damaged: it holds no object")
    return found


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that takes its name (and place) only when the block ends well.

    Raises UserError where there can be no such folder.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    with _writing(path):
        temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
