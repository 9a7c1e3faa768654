"""The measures by name, each a file beside this one, and which of them rows of some shape are for.

A measure takes a `Probe` and `Rows` and returns {"metrics": {metric: {model: figure}}} (`align.evaluation.figures`),
with more of its own beside it. It counts in the ledger of the rows what it could not use.
"""

from __future__ import annotations

from align.errors import UserError, shorten
from align.evaluation import (
    drift,
    flips,
    kl,
    multiple_choice,
    negative_bias,
    over_refusal,
    pass_at_k,
    preference_accuracy,
    repetition,
)
from align.evaluation.probe import Probe
from align.evaluation.rows import BENIGN, Rows
from align.evaluation.settings import Settings
from align.schema import nearest

MEASURES = {
    "preference_accuracy": preference_accuracy.evaluate,
    "multiple_choice": multiple_choice.evaluate,
    "flips": flips.evaluate,
    "negative_bias": negative_bias.evaluate,
    "pass_at_k": pass_at_k.evaluate,
    "drift": drift.evaluate,
    "kl": kl.evaluate,
    "over_refusal": over_refusal.evaluate,
    "repetition": repetition.evaluate,
}
SCORED = {"preference_accuracy", "multiple_choice", "flips", "negative_bias"}  # what `--tune` adds a score to
WRITTEN = {"pass_at_k", "over_refusal", "repetition"}  # for which answers are written


def check(names: list[str]) -> None:
    """Raises UserError for a name that no measure has."""
    for name in names:
        if name not in MEASURES:
            raise UserError("--measure", f"{shorten(name)}: there is no such measure", nearest(name, list(MEASURES)))


def fitting(rows: Rows, settings: Settings) -> list[str]:
    """The measures that rows of this shape are for.

    What a run held out is also there to see drift, and so are rows that nothing else fits. Answers are written, which
    takes longest, to harmless prompts that are known as such, and where a verifier can tell which are right.
    """
    found = []
    if any(negative_bias.answer_of(example) is not None for example in rows.examples):
        found += ["negative_bias", "multiple_choice", "flips"]
    elif any(example.texts("positive") and example.texts("negative") for example in rows.examples):
        found += ["preference_accuracy", "multiple_choice", "flips", "drift"]
    if settings.verifier and any(example.texts("positive") for example in rows.examples):
        found.append("pass_at_k")
    if rows.is_own or not found:
        found += ["drift", "kl"]
    if rows.path == BENIGN:
        found += ["over_refusal", "repetition"]
    return [name for name in MEASURES if name in found]


def evaluate(name: str, probe: Probe, rows: Rows) -> dict:
    """What a measure finds on the rows, and what became of them. Raises UserError if it can use none."""
    rows = rows.fresh()
    found = MEASURES[name](probe, rows)
    return {"measure": name, "data": rows.name, "rows": rows.ledger.as_dict(), **found}
