"""The section `guard` of a recipe: what may be lost, and what is done about it."""

from __future__ import annotations

from dataclasses import dataclass

from align.data.options import Source
from align.schema import option

OFF, WARN, LOWER, ANCHOR, ROLLBACK, STOP = "off", "warn", "lower", "anchor", "rollback", "stop"
ACTIONS = (WARN, LOWER, ANCHOR, ROLLBACK, STOP)  # in the order in which they are taken


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """How far each watch may go since the start of the run, log-probs in nat a token; null: never an alarm."""

    positive: float | None = option(0.5, gt=0, doc="Fall of the log-prob of positives, nat a token.")
    sample: float | None = option(0.5, gt=0, doc="Fall of the log-prob of the policy's own samples, nat a token.")
    retain: float | None = option(0.3, gt=0, doc="Fall of the log-prob of retain rows, nat a token.")
    benign: float | None = option(0.3, gt=0, doc="Fall of the log-prob of good answers to neutral prompts.")
    kl: float | None = option(0.6, gt=0, doc="KL(policy || start) on these answers, nat a token.")
    entropy: float | None = option(1.0, gt=0, doc="Change of the entropy there, up or down, nat.")
    top1: float | None = option(0.3, gt=0, doc="Rise of the likeliest token's probability within negatives.")
    repeated: float | None = option(0.2, gt=0, doc="Rise of the probability of earlier tokens within negatives.")
    repetition: float | None = option(0.4, gt=0, doc="Rise of the share of repeated runs of four in short answers.")
    length: float | None = option(0.7, gt=0, doc="Share of their length that short answers lost.")
    displacement: float | None = option(
        None,
        gt=0,
        doc="Gradient-norm ratio of negatives to the rest times their cosine; above 1 the rest falls.",
    )


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Watches over what negatives do to everything else."""

    action: str = option(
        STOP,
        choices=(OFF, *ACTIONS),
        doc="The last action it may take: warn; lower the weight of negatives; add a KL anchor; roll back to the last "
        "good checkpoint; stop. off: nothing is measured.",
    )
    every: int | None = option(
        None, ge=1, doc="Steps between measurements; null: as often as takes under 3 % of the steps' time."
    )
    prompts: int = option(4, ge=1, le=64, doc="Neutral prompts that are measured; half as many other rows of a kind.")
    sources: list[Source] = option(
        lambda: [Source(path="builtin:benign", split="heldout")],
        doc="Neutral prompts with good answers; never learned from.",
    )
    anchors: list[Source] = option(
        lambda: [Source(path="builtin:retain")], doc="Rows on which a KL anchor holds the policy to its start."
    )
    budgets: Budgets = option(Budgets, doc="How far each watch may go.")
