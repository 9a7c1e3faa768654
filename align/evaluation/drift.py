"""Log-prob drift: how likely right and wrong answers are, in nats a token, and how far that is from the base.

By role, and within a role by what the rows call their source, where there are several.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from align.evaluation import figures
from align.evaluation.probe import Options, Probe
from align.evaluation.rows import Rows

SHOWN = 8  # sources of a role: those with most rows
NEEDS = "rows with answers"


def evaluate(probe: Probe, rows: Rows) -> dict:
    """Mean log-probs by role and source. Raises UserError if no row can be scored."""
    options, metrics = probe.options(rows.examples, rows.ledger, rows.where, NEEDS), {}
    for role, is_right in (("positives", True), ("negatives", False)):
        chosen = [right == is_right for right in options.is_right]
        for title, kept in groups(options, chosen).items():
            name = role if title is None else f"{role}, {title}"
            metrics[name] = of_role(options, chosen, kept)
    return {"unit": "nats a token", "metrics": metrics}


def groups(options: Options, chosen: list[np.ndarray]) -> dict[str | None, np.ndarray]:
    """{source: (N,) bool its rows}, None for all of them; of rows with a chosen answer. Empty if there are none."""
    has = np.array([mask.any() for mask in chosen])
    if not has.any():
        return {}
    sources = np.array(options.sources)
    counts = Counter(sources[has].tolist())
    named = [name for name, _ in counts.most_common(SHOWN)] if len(counts) > 1 else []
    return {None: has, **{name: has & (sources == name) for name in named}}


def of_role(options: Options, chosen: list[np.ndarray], kept: np.ndarray) -> dict[str, dict]:
    """{head: figure} of the mean over the tokens of the `chosen` answers of the rows `kept` (N,)."""
    picked = np.flatnonzero(kept)
    tokens = np.array([options.lengths[index][chosen[index]].sum() for index in picked], float)
    sums = {
        name: np.array([logps[index][chosen[index]].sum() for index in picked]) for name, logps in options.logps.items()
    }
    return figures.ratios(sums, tokens)
