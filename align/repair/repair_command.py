"""The command `align repair`: finds the heads that look at "No" whatever the question, trains them, measures both."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path

import torch
from transformers.utils import logging as transformers_logging

import align
from align import models, processor
from align.adapter_heads import parse
from align.errors import UserError, printable, shorten
from align.evaluation import negative_bias, subject
from align.evaluation import rows as evaluation_rows
from align.evaluation.probe import Probe, as_head
from align.evaluation.rows import Rows
from align.evaluation.subject import BASE, POLICY
from align.recipe import Model
from align.repair import heads, training, yesno
from align.repair.yesno import Asked
from align.run import write_json

MADE = "repair.json"
_COLUMNS = ("bias", "log-odds of no", "precision of yes", "recall of yes", "said yes", "accuracy")


def main(what: str, data: str, out: str, *, count: int, settings: list[str], as_json: bool) -> None:
    """Repairs a run's policy or a model into the run folder `out`. Raises UserError."""
    output, rows = Path(out), evaluation_rows.given(data)
    if output.exists():
        raise UserError("--out", f"{shorten(out, 160)} is there already", "name another folder")
    learned, measured = yesno.halves(rows)
    processor.prepare()
    transformers_logging.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            model = training.start(what, output)
            parts = (yesno.asked(learned.examples), yesno.asked(measured.examples))
            prepared = training.prepare(model, parts, output, settings)
            chosen = _chosen(model, parts[0], count)
        except UserError:
            shutil.rmtree(output, ignore_errors=True)  # nothing has been trained yet
            raise
        training.train(prepared, chosen)
    made = {"align": align.__version__, "model": what, "data": data, "data_sha256": evaluation_rows.data_hash(data)}
    result = {"made": made, "rows": rows.ledger.as_dict(), **_measured(output, measured, chosen)}
    write_json(output / MADE, result)
    print(json.dumps(result, indent=2, ensure_ascii=False) if as_json else table(result), flush=True)


def _chosen(model: Model, asked: list[Asked], count: int) -> list[str]:
    """The names of the heads to train. Raises UserError if no head looks at "No"."""
    tokenizer, policy = models.load_tokenizer(model), models.load_model(model, dtype=torch.float32).eval()
    found = heads.highest(heads.scores(policy, [heads.locate(tokenizer, one) for one in asked]), count)
    if not found:
        what = "no head looks at No more than at Yes"
        raise UserError(shorten(model.path, 160), what, "there is nothing to repair")
    return found


def _measured(output: Path, rows: Rows, chosen: list[str]) -> dict:
    """Before and after, on questions that nothing was learned from: the chosen heads' scores, and the negative bias."""
    both = subject.load(output)
    found = negative_bias.evaluate(Probe(both), rows)
    prompts, scores = [heads.locate(both.tokenizer, one) for one in yesno.asked(rows.examples)], {}
    for name, head in both.heads.items():
        with as_head(head, both.in_bf16) as model:
            scores[name] = heads.scores(model, prompts)
    own = {}
    for name in chosen:
        ((layer, (head,)),) = parse([name]).items()
        own[name] = {when: float(scores[when][layer, head]) for when in (BASE, POLICY)}
    return {"heads": own, **found}


def table(result: dict) -> str:
    """The result for a terminal."""
    rows, metrics = result["rows"], result["metrics"]
    dropped = "".join(f" · {printable(reason)}: {one['count']}" for reason, one in rows["dropped"].items())
    lines = [f"rows read {rows['rows_read']}, used {rows['rows_used']}{dropped}"]
    lines += [f"before and after, on {result['questions']} other questions", "", f"{'head':<34}score"]
    lines += [f"{name:<34}{own[BASE]:.4f} to {own[POLICY]:.4f}" for name, own in result["heads"].items()]
    lines += ["", f"{'answers offered':<34}" + "".join(name.ljust(18) for name in _COLUMNS).rstrip()]
    for setting in (name.partition(": ")[2] for name in metrics if name.startswith("bias: ")):
        pairs = (metrics[f"{name}: {setting}"] for name in _COLUMNS)
        cells = (f"{_number(own[BASE])} to {_number(own[POLICY])}" for own in pairs)
        lines.append(f"{setting:<34}{''.join(cell.ljust(18) for cell in cells)}".rstrip())
    return "\n".join(lines)


def _number(figure: dict) -> str:
    return "none" if figure["value"] is None else f"{figure['value']:.3f}"
