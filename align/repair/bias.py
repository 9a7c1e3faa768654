"""Negative bias on balanced questions of yes or no: the precision of "yes" less its recall, above 0 for a lean to "no".

The candidate with the higher log-prob, end of turn included, is the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.data.ledger import Ledger
from align.evaluation import multiple_choice
from align.evaluation.multiple_choice import SUM
from align.evaluation.subject import Subject
from align.repair.yesno import Asked


def measure(models: Subject, asked: Sequence[Asked], ledger: Ledger) -> dict[str, dict[str, float | None]]:
    """{head: bias, precision and recall of yes, share of yes said, accuracy}; None where yes is never said.

    What cannot be scored whole is counted in `ledger`. Raises UserError if nothing can.
    """
    answers = {str(one.place): one.is_yes for one in asked}
    options = multiple_choice.score(models, [one.example() for one in asked], ledger)
    is_yes = np.array([answers[place] for place in options.places])
    return {name: figures(is_yes, options.correct({name: 1.0}, SUM)) for name in models.heads}


def figures(is_yes: np.ndarray, is_right: np.ndarray) -> dict[str, float | None]:
    """The figures of answers (N,) bool: whether yes is right, and whether the answer was right."""
    said_yes = is_yes == is_right
    hits = int((said_yes & is_yes).sum())
    precision = hits / int(said_yes.sum()) if said_yes.any() else None
    recall = hits / int(is_yes.sum())
    return {
        "bias": None if precision is None else precision - recall,
        "precision_of_yes": precision,
        "recall_of_yes": recall,
        "said_yes": float(said_yes.mean()),
        "accuracy": float(is_right.mean()),
    }
