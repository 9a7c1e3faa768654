"""The recipe sections warm_start and rollouts."""

from __future__ import annotations

from dataclasses import dataclass

from align.judges.options import Verifier
from align.schema import option


@dataclass(frozen=True, kw_only=True)
class WarmStart:
    """A short supervised start: the policy imitates worked solutions before it is sampled from."""

    path: str = option(doc="A source of rows with positives; see data.sources.")
    split: str = option("train", doc="Split of a builtin or hub data set.")
    learning_rate: float = option(1e-3, gt=0, doc="Peak learning rate.")
    max_steps: int = option(40, ge=1, doc="Optimiser steps.")
    prompts_per_step: int = option(16, ge=1, doc="Prompts in an optimiser step.")


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    prompts: int | None = option(None, ge=1, doc="Prompts sampled from in a round, another part each; null: all.")
    held_out: int = option(0, ge=0, doc="Held-out prompts on which pass@k is measured before and after each round.")
    groups: str = option(
        "mixed", choices=("mixed", "all"), doc="Prompts to learn from: with right and wrong answers, or all."
    )
    verifier: Verifier = option(Verifier, doc="What tells right answers from wrong ones.")
    against: list[dict] = option(
        list, doc="Objectives trained on the rows of the last round as well, to compare with; as under objective."
    )
