"""The guard of a recipe: what is watched in a run, what may be done, and with which rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from accelerate import PartialState

from align.guard.anchor import Anchor
from align.guard.options import ACTIONS, ANCHOR, LOWER, OFF, WARN
from align.guard.rows import FixedRows, neutral_rows, watched_rows
from align.guard.watchdog import Watchdog
from align.guard.watches import Watches
from align.objectives import NEGATIVE, Objective
from align.recipe import Recipe
from align.run import RunFolder

if TYPE_CHECKING:
    from align.data.load import Rows
    from align.data.load_streams import Streams
    from align.trainer import AlignTrainer


def watchdog(recipe: Recipe, trainer: AlignTrainer, rows: Rows | Streams, tokenizer, layout: str) -> Watchdog | None:
    """The guard of a run; None where it is off."""
    if recipe.guard.action == OFF:
        return None
    objective = trainer.objective
    how = {"device": trainer.args.device, "tokens_per_device": recipe.train.tokens_per_device,
           "pad_id": tokenizer.eos_token_id, "layout": layout, "autocast": trainer.accelerator.autocast}  # fmt: skip
    groups = watched_rows(recipe, objective, tokenizer, *rows.first())
    watched = FixedRows([row for own in groups.values() for row in own], **how)
    held = neutral_rows(recipe, recipe.guard.anchors, objective, tokenizer) if may(recipe, objective, ANCHOR) else []
    if not groups["benign"] and PartialState().is_main_process:
        print("guard: no row of guard.sources fits into data.max_length, so no neutral prompts are watched", flush=True)
    return Watchdog(
        trainer, RunFolder(recipe.output), recipe.guard,
        watches=Watches(groups, watched, trainer.model, tokenizer),
        anchor=Anchor(FixedRows(held, **how)) if held else None,
        allowed=tuple(action for action in ACTIONS if may(recipe, objective, action) and (held or action != ANCHOR)),
        saves=recipe.model.adapter is not None and not recipe.train.save_every,
    )  # fmt: skip


def may(recipe: Recipe, objective: Objective, action: str) -> bool:
    """Whether the recipe allows an action, and whether it makes sense for the objective.

    A run that pushes nothing down is meant to change: it is warned of, no more. Where each role has an adapter of its
    own, negatives pull at nothing but theirs, and an anchor has never been tried.
    """
    if ACTIONS.index(action) > ACTIONS.index(recipe.guard.action):
        return False
    if NEGATIVE not in objective.roles():
        return action == WARN
    return "heads" not in objective.needs or action not in (LOWER, ANCHOR)
