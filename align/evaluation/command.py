"""The command `align evaluate`: which measurements, of which runs, printed how. Each is a file beside this one."""

from __future__ import annotations

import copy
import json

from transformers.utils import logging as transformers_logging

import align
from align import processor
from align.data.ledger import Ledger
from align.errors import UserError, printable
from align.evaluation import curve, multiple_choice, subject
from align.evaluation.multiple_choice import SUM

GRID = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # weights of the negative head that --tune tries


def main(runs: list[str], data: str, *, tune: str | None, draws_curve: bool, plot: str | None, as_json: bool) -> None:
    """Measures and prints. Raises UserError."""
    if plot and not draws_curve:
        raise UserError("--plot", "draws learning curves", "add --curve")
    if tune and draws_curve:
        raise UserError("--tune", "is for final weights", "leave out --curve, or --tune")
    if plot:
        curve.check_image(plot)
    processor.prepare()
    transformers_logging.disable_progress_bar()
    ledger = Ledger()
    examples = multiple_choice.questions(data, ledger)
    made = {"align": align.__version__, "data": data, "data_sha256": multiple_choice.data_hash(data), "seed": 0}
    if draws_curve:
        curves = curve.measure(runs, examples)
        if plot:
            curve.plot(curves, plot)
        _print(curve.table(curves), {"made": made, "rows": ledger.as_dict(), "curves": curves}, as_json)
        return
    for run in runs:
        found, text = _final(run, examples, copy.deepcopy(ledger), tune)
        _print(text, {"made": made | {"run": run}, **found}, as_json)


def _final(run: str, examples: list, ledger: Ledger, tune: str | None) -> tuple[dict, str]:
    """(the measurements of a run's final weights, the same for a terminal)."""
    models = subject.load(run)
    scores = dict(models.scores)
    if tune:
        scores |= _tuned(models, tune)
    options = multiple_choice.score(models, examples, ledger)
    result = multiple_choice.measure(options, scores)
    dropped = "".join(f" · {printable(reason)}: {count}" for reason, count in sorted(ledger.dropped.items()))
    text = f"{printable(run)}: rows read {ledger.read}, used {ledger.used}{dropped}\n"
    found = {"precision": "bf16" if models.in_bf16 else "fp32", "rows": ledger.as_dict(), "chance": options.chance}
    return found | {"multiple_choice": result}, text + multiple_choice.table(options, result)


def _tuned(models: subject.Subject, tune: str) -> dict[str, dict[str, float]]:
    """The ratio with the weight of the negative head that does best on other questions."""
    if subject.RATIO not in models.scores:
        raise UserError("--tune", f"{models.name} has no ratio whose weight could be chosen", "leave it out")
    options = multiple_choice.score(models, multiple_choice.questions(tune, Ledger(), "--tune"), Ledger(), "--tune")
    best = multiple_choice.best_weight(options, models.scores, SUM, GRID)
    return {f"ratio, w- {best:g} by --tune": {**models.scores[subject.RATIO], "negative": -best}}


def _print(text: str, found: dict, as_json: bool) -> None:
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else text, flush=True)
