"""Training of the chosen heads, and of them alone: an ordinary run, from rows and a recipe written into its folder.

    FOLDER/repair/policy/         the model that is repaired, where it was an adapter on another
    FOLDER/repair/train.jsonl     questions with the candidates in either order, right one positive, other negative
    FOLDER/repair/heldout.jsonl   other questions, measured on
    FOLDER/repair/recipe.yaml     the recipe of the run, without the heads; FOLDER is its output

The objective is `cpo` without its likelihood term at beta 1: the cross-entropy between the two candidates. As many
questions have either answer, so a lean to one of the words only costs, also for a model that knows none of them.
What NASA does that is left out here (our reading, not verified): heads are tuned one after another, each until the
bias on other rows no longer shrinks; here all of them are, for a fixed number of steps.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from align import job, models, recipe, yaml_lines
from align.data.examples import to_row
from align.errors import UserError, shorten
from align.evaluation import subject
from align.recipe import Model, Recipe
from align.repair.yesno import Asked
from align.run import RunFolder, find_heads, write_text

FOLDER = "repair"


def start(what: str, output: Path) -> Model:
    """The model to repair: a path, or a finished run's policy, whose adapter is added to its base in `output`.

    Raises UserError if it is neither, or nothing that answers questions by itself.
    """
    folder = RunFolder(what)
    if not folder.recipe.is_file():
        problem = models.check_path(what)
        if problem:
            raise UserError("RUN", *problem)
        return Model(path=what)
    if find_heads(folder.weights) or (folder.weights / subject.PREFIX_FILE).is_file():
        raise UserError(shorten(what, 160), "has two heads, or is asked behind a prompt of its own", "name another run")
    given = folder.resolved()["model"]
    base = Model(**{key: value for key, value in given.items() if key != "adapter"})
    target = folder.weights
    if (folder.weights / subject.ADAPTER_FILE).is_file():
        target = output / FOLDER / "policy"
        models.merge_adapter(base, folder.weights, target)
    elif not (folder.weights / "config.json").is_file():
        raise UserError(shorten(what, 160), "is no finished run: it has no final/", "name another folder")
    return Model(path=str(target), trust_remote_code=base.trust_remote_code)


def prepare(model: Model, parts: tuple[Sequence[Asked], Sequence[Asked]], output: Path, settings: list[str]) -> Recipe:
    """The recipe that trains on the first part and measures on the second, but for the heads.

    `settings` are overrides of it. Raises UserErrors for wrong ones.
    """
    named = {}
    for name, asked in zip(("train", "heldout"), parts, strict=True):
        named[name] = output / FOLDER / f"{name}.jsonl"
        write_text(named[name], "".join(json.dumps(to_row(one.example()), ensure_ascii=False) + "\n" for one in asked))
    file = output / FOLDER / "recipe.yaml"
    write_text(file, yaml_lines.dump(_recipe(model, named, output)))
    loaded = recipe.load(file, settings)
    if loaded.model.adapter is None or loaded.output != str(output):
        what = "output is what --out says, and heads are trained by an adapter"
        raise UserError("command line", what, "leave such overrides out")
    return loaded


def train(prepared: Recipe, heads: Sequence[str]) -> None:
    """Runs the recipe on these heads. Raises UserError."""
    adapter = dataclasses.replace(prepared.model.adapter, heads=list(heads))
    job.train(dataclasses.replace(prepared, model=dataclasses.replace(prepared.model, adapter=adapter)))


def _recipe(model: Model, named: dict[str, Path], output: Path) -> dict:
    return {
        "name": "repair",
        "model": {"path": model.path, "trust_remote_code": model.trust_remote_code, "adapter": {"rank": 8}},
        "data": {"sources": [{"path": str(named["train"])}]},
        "objective": {"name": "cpo", "beta": 1.0, "alpha": 0.0},
        "train": {"learning_rate": 3e-3, "epochs": 4, "prompts_per_step": 8},
        "eval": {"sources": [{"path": str(named["heldout"])}], "holdout": 0.0, "generate": 0},
        "output": str(output),
    }
