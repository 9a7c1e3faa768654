"""Preference accuracy: how often a right answer is scored above a wrong one to the same prompt.

By the sum of log-probs, by their mean over tokens, and by implicit reward: how much likelier than under the base, as in
DPO (https://arxiv.org/abs/2305.18290, Eq. 5 without the partition function, which pairs share). All pairs of a row
count, and a row as much as another. A tie is an error.
"""

from __future__ import annotations

import numpy as np

from align.evaluation import figures, multiple_choice
from align.evaluation.probe import PER_TOKEN, SUM, Options, Probe
from align.evaluation.rows import Rows
from align.evaluation.subject import BASE


def evaluate(probe: Probe, rows: Rows) -> dict:
    """The share of pairs in order. Raises UserError if no row has a pair."""
    options = probe.options(multiple_choice.select(rows.examples, rows.ledger), rows.ledger, rows.where)
    scores = probe.subject.scores
    rewards = {name: rewarded(weights) for name, weights in scores.items() if name != BASE}
    return {
        "pairs": int(sum(right.sum() * (~right).sum() for right in options.is_right)),
        "metrics": {
            "by sum": _figures(options, scores, SUM),
            "by mean log-prob": _figures(options, scores, PER_TOKEN),
            "by implicit reward": _figures(options, rewards, SUM),
        },
    }


def in_order(options: Options, weights: dict[str, float], how: str) -> np.ndarray:
    """(N,) for each row the share of its pairs of which the right answer has the higher score."""
    scored = zip(options.scores(weights, how), options.is_right, strict=True)
    return np.array([(score[right][:, None] > score[~right]).mean() for score, right in scored])


def rewarded(weights: dict[str, float]) -> dict[str, float]:
    """The score less as much of the base as its heads weigh together; a ratio of two heads is a reward already."""
    found = dict(weights)
    found[BASE] = found.get(BASE, 0.0) - sum(weights.values())
    return found


def _figures(options: Options, scores: dict[str, dict[str, float]], how: str) -> dict[str, dict]:
    return figures.portions({name: in_order(options, weights, how) for name, weights in scores.items()})
