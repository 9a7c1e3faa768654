"""Repetition of greedy answers, by tokens: repeated runs of four, distinct words and pairs of them, length.

Of each answer, averaged over answers. `repeated 4-grams`: 1 - distinct / all (seq-rep-4, https://arxiv.org/abs/1908.04319);
`distinct-n`: distinct n-grams over tokens, within the answer (https://arxiv.org/abs/1510.03055 counts over all answers,
which no resampling of answers gives an interval of). Longer answers repeat more: read it beside the length.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.evaluation import figures
from align.evaluation.probe import Probe
from align.evaluation.rows import Rows
from align.generation import stop_ids
from align.negatives.sampling import is_degenerate


def evaluate(probe: Probe, rows: Rows) -> dict:
    """Repetition in greedy answers. Raises UserError if no prompt can be asked."""
    _, answers = probe.answers(rows.examples, rows.ledger, rows.where)
    stops = {name: stop_ids(head.model, probe.subject.tokenizer) for name, head in probe.subject.heads.items()}
    said = {name: [_without_end(ids, stops[name]) for ids in own] for name, own in answers.items()}

    def means(of) -> dict[str, dict]:
        return figures.means({name: np.array([of(ids) for ids in own], float) for name, own in said.items()})

    cut = {name: np.array([ids[-1] not in stops[name] for ids in own]) for name, own in answers.items()}
    circles = {name: np.array([is_degenerate(ids) for ids in own]) for name, own in said.items()}
    return {
        "max_new_tokens": probe.settings.max_new_tokens,
        "metrics": {
            "repeated 4-grams": means(lambda ids: repeated(ids, 4)),
            "distinct-1": means(lambda ids: distinct(ids, 1)),
            "distinct-2": means(lambda ids: distinct(ids, 2)),
            "length in tokens": means(len),
            "runs in circles": figures.shares(circles),
            "cut off at the most tokens": figures.shares(cut),
        },
    }


def repeated(ids: Sequence[int], n: int) -> float:
    """The share of n-grams that have been there before; 0 of an answer with none."""
    grams = _grams(ids, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(ids: Sequence[int], n: int) -> float:
    """Distinct n-grams over tokens; 0 of an empty answer."""
    return len(set(_grams(ids, n))) / len(ids) if len(ids) else 0.0


def _grams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]


def _without_end(ids: Sequence[int], stops: set[int]) -> list[int]:
    return list(ids[:-1] if ids[-1] in stops else ids)
