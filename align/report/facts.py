"""Everything that a run folder's files tell, read once; what is not there yet is empty."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from align.errors import UserError, shorten
from align.report.series import Metrics
from align.run import RunFolder, read_json


@dataclass(frozen=True)
class Facts:
    """The files of a run, by their names."""

    run: RunFolder
    recipe: dict
    recipe_text: str
    metrics: Metrics
    environment: dict = field(default_factory=dict)
    data: dict = field(default_factory=dict)
    evaluation: dict = field(default_factory=dict)
    evaluations: dict = field(default_factory=dict)
    progress: dict = field(default_factory=dict)
    events: list[dict] = field(default_factory=list)  # of guard.jsonl

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", self.run.path.name))

    @property
    def objective(self) -> str:
        return str(self.recipe.get("objective", {}).get("name", "?"))

    @property
    def held_out(self) -> list[tuple[int | None, dict]]:
        """(step, measurements) before, during and after, as far as they have been made; None: behind the last step."""
        found = [(0, self.evaluation["before"])] if self.evaluation.get("before") else []
        found += [
            (one["step"], {k: v for k, v in one.items() if k != "step"}) for one in self.evaluation.get("during", [])
        ]
        return found + ([(None, self.evaluation["after"])] if self.evaluation.get("after") else [])


def read(folder: str | Path, metrics: Metrics | None = None) -> Facts:
    """The facts of a run folder; `metrics` that were read before are read on.

    Raises UserError if it is none, or a file is damaged.
    """
    run = RunFolder(folder)
    if not run.recipe.is_file():
        what = "is no run folder: it has no recipe.yaml"
        raise UserError(shorten(str(folder), 160), what, "name the folder that a run wrote (output)")
    recipe, text = run.resolved(), run.recipe.read_text(encoding="utf-8")
    names = ("environment", "data", "evaluation", "evaluations", "progress")
    found = {name: read_json(getattr(run, name)) for name in names}
    metrics = (metrics or Metrics(run.metrics)).read_on()
    return Facts(run, recipe, text, metrics, **found, events=_lines(run.guard))


def _lines(file: Path) -> list[dict]:
    """The lines of a file that grows; a last one that a kill has cut off is left out."""
    if not file.is_file():
        return []
    whole = [line for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
    try:
        found = [json.loads(line) for line in whole]
    except ValueError as error:
        raise UserError(str(file), f"is damaged: {shorten(error)}") from None
    if not all(isinstance(one, dict) for one in found):
        raise UserError(str(file), "is damaged: a line holds no object")
    return found
