"""What goes on from step to step beside weights and optimiser: kept in checkpoints, restored, and rolled back to."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

from transformers.integrations.deepspeed import deepspeed_load_checkpoint

from align.data.steps import Feed
from align.errors import UserError
from align.run import write_json, write_text

if TYPE_CHECKING:
    from align.trainer import AlignTrainer

# Files of a checkpoint.
MEMORY, MEANS, FEEDS, PULLS = "objective.json", "running_means.safetensors", "rows.json", "pulls.json"


def keep(trainer: AlignTrainer, folder: Path) -> None:
    """Writes it to a checkpoint. All ranks must call."""
    states = {name: feed.state() for name, feed in _feeds(trainer).items()}
    if not trainer.is_world_process_zero():
        return
    write_text(folder / FEEDS, json.dumps(states))
    write_json(folder / MEMORY, trainer.memory)
    if trainer.scorer.means is not None:
        trainer.scorer.means.save(folder / MEANS)
    if trainer.pulls is not None:
        write_json(folder / PULLS, trainer.pulls.state())


def restore(trainer: AlignTrainer, folder: Path) -> None:
    """Reads what `keep` wrote. Raises UserError if the rows are not those of the run that wrote it."""
    step = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"]
    states = json.loads((folder / FEEDS).read_text(encoding="utf-8"))
    feeds = _feeds(trainer)
    if states.keys() != feeds.keys():
        what = f"{folder} was written by a run {'with' if 'retain' in states else 'without'} a retain term"
        raise UserError("retain.sources", what, "resume with the same recipe")
    for name, feed in feeds.items():
        feed.restore(states[name], step, trainer.is_world_process_zero())
    _remember(trainer, folder)
    if trainer.pulls is not None and (folder / PULLS).exists():  # it is not of a run with guard.action: off
        trainer.pulls.restore(json.loads((folder / PULLS).read_text(encoding="utf-8")))


def roll_back(trainer: AlignTrainer, folder: Path) -> None:
    """Weights, optimiser and what the objective remembers become a checkpoint's; steps, rows and learning rate go on.

    All ranks must call, between two steps.
    """
    rates, scheduler = trainer.lr_scheduler.get_last_lr(), copy.deepcopy(trainer.lr_scheduler.state_dict())
    if trainer.is_deepspeed_enabled:
        is_whole = not hasattr(trainer.model, "peft_config")  # of an adapter's base nothing is in the checkpoint
        deepspeed_load_checkpoint(trainer.model_wrapped, str(folder), load_module_strict=is_whole)
    else:
        trainer._load_from_checkpoint(str(folder))
        trainer._load_optimizer_and_scheduler(str(folder))
    trainer.lr_scheduler.load_state_dict(scheduler)
    for group, rate in zip(trainer.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    _remember(trainer, folder)


def _remember(trainer: AlignTrainer, folder: Path) -> None:
    trainer.memory = json.loads((folder / MEMORY).read_text(encoding="utf-8"))
    if trainer.scorer.means is not None:
        trainer.scorer.means.load(folder / MEANS)


def _feeds(trainer: AlignTrainer) -> dict[str, Feed]:
    """Where the rows of each step come from."""
    named = {"train": trainer.train_dataset.feed, "retain": trainer.train_dataset.retain}
    return {name: feed for name, feed in named.items() if feed is not None}
