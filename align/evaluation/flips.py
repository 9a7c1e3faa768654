"""Flips: what was answered right before and is answered wrong after, and the other way round.

An accuracy that stays the same may hide as many answers lost as won. The negative flip rate is the share of all
questions that were right before and are wrong after (https://arxiv.org/abs/2301.10546).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.evaluation import figures, multiple_choice
from align.evaluation.intervals import mcnemar
from align.evaluation.probe import SPELT, Probe
from align.evaluation.rows import Rows
from align.evaluation.subject import BASE


def flips(before: Sequence[bool], after: Sequence[bool]) -> dict:
    """Counts and rates of the answers to the same N questions, by whether they were right before and are right after.

    `negative_flip_rate`: right to wrong, over N; `positive_flip_rate`: wrong to right, over N; `of_wrong_after`: the
    share of the answers that are wrong after which were right before (0 where none is wrong); `p`: McNemar's exact
    test of the two kinds of flips. Raises ValueError if there are no questions, or not the same number.
    """
    was, now = np.asarray(before, bool), np.asarray(after, bool)
    if was.shape != now.shape or was.ndim != 1 or not len(was):
        raise ValueError(f"{was.shape} answers before and {now.shape} after are not to the same questions")
    lost, won, kept = int((was & ~now).sum()), int((~was & now).sum()), int((was & now).sum())
    return {
        "questions": len(was),
        "right_to_right": kept,
        "right_to_wrong": lost,
        "wrong_to_right": won,
        "wrong_to_wrong": len(was) - kept - lost - won,
        "negative_flip_rate": lost / len(was),
        "positive_flip_rate": won / len(was),
        "of_wrong_after": lost / max(1, len(was) - kept - won),
        "p": mcnemar(won, lost),
    }


def evaluate(probe: Probe, rows: Rows) -> dict:
    """Flips from the base to each score on the questions among the rows. Raises UserError if there are none."""
    options = probe.options(multiple_choice.select(rows.examples, rows.ledger), rows.ledger, rows.where)
    metrics, counts = {}, {}
    for how, spelt in SPELT.items():
        correct = {name: options.correct(weights, how) for name, weights in probe.subject.scores.items()}
        before = correct.pop(BASE)
        lost = {name: before & ~after for name, after in correct.items()}
        won = {name: ~before & after for name, after in correct.items()}
        metrics |= {f"right to wrong, {spelt}": figures.shares(lost), f"wrong to right, {spelt}": figures.shares(won)}
        counts[spelt] = {name: flips(before, after) for name, after in correct.items()}
    return {"metrics": metrics, "flips": counts}
