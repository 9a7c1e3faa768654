"""Multiple choice: is the best right answer scored above every wrong one?

A question is a row with positives and negatives, each of them an option; options are scored as whole answers, end of
turn included, by the sum of their log-probs, and by that sum divided by the number of tokens. A tie with a wrong option
is an error. Every score is compared with the base's on the same questions (McNemar's exact test).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from align.data.examples import Example
from align.data.ledger import Ledger
from align.evaluation import figures
from align.evaluation import rows as evaluation_rows
from align.evaluation.probe import PER_TOKEN, SPELT, SUM, Options, Probe
from align.evaluation.rows import Rows
from align.evaluation.subject import BASE, Subject


def evaluate(probe: Probe, rows: Rows) -> dict:
    """The accuracy of each score on the questions among the rows. Raises UserError if there are none."""
    options = probe.options(select(rows.examples, rows.ledger), rows.ledger, rows.where)
    found = measure(options, probe.subject.scores)
    metrics = {f"accuracy {SPELT[how]}": {name: _figure(own[how]) for name, own in found.items()}
               for how in (SUM, PER_TOKEN)}  # fmt: skip
    weights = {name: own["weights"] for name, own in found.items()}
    return {"chance": options.chance, "weights": weights, "metrics": metrics}


def questions(path: str, ledger: Ledger, where: str = "--data", most: int | None = None) -> list[Example]:
    """Those of the rows (the first `most`) of a source, named by the option `where`, that are questions.

    What is not is counted.

    Raises UserError if the source cannot be read.
    """
    return select(evaluation_rows.read(path, ledger, where, most), ledger)


def select(examples: Sequence[Example], ledger: Ledger) -> list[Example]:
    """The examples that are questions; what is not is counted."""
    found = []
    for example in examples:
        right, wrong = set(example.texts("positive")), set(example.texts("negative"))
        if not right or not wrong:
            ledger.drop(f"no {'wrong' if right else 'right'} answer", example.place)
        elif right & wrong:
            ledger.drop("an answer is both right and wrong", example.place)
        else:
            found.append(example)
    return found


def score(subject: Subject, examples: Sequence[Example], ledger: Ledger, where: str = "--data") -> Options:
    """All options under all heads of the subject. Raises UserError if no question can be scored."""
    return Probe(subject).options(examples, ledger, where)


def measure(options: Options, scores: dict[str, dict[str, float]]) -> dict:
    """{score: {"weights", sum | per token: {"accuracy", "interval"}}}, and of all scores but the base's what differs.

    The latter as in `align.evaluation.figures`: change, change_interval, won (the base was wrong), lost, p.
    """
    result: dict[str, dict] = {name: {"weights": weights} for name, weights in scores.items()}
    for how in (SUM, PER_TOKEN):
        base = options.correct({BASE: 1.0}, how)
        for name, weights in scores.items():
            found = figures.share(options.correct(weights, how), None if name == BASE else base)
            result[name][how] = {"accuracy": found.pop("value"), **found}
    return result


def best_weight(options: Options, scores: dict[str, dict[str, float]], how: str, grid: Sequence[float]) -> float:
    """The w- of `grid` with which the ratio gets most questions right; the smallest of several."""
    ratio = scores["ratio"]
    weights = [{**ratio, "negative": -weight} for weight in grid]
    return grid[int(np.argmax([options.correct(one, how).mean() for one in weights]))]


def _figure(found: dict) -> dict:
    """What `align.evaluation.figures` calls a figure."""
    return {"value" if key == "accuracy" else key: value for key, value in found.items()}
