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
from align.data.ledger import Ledger
from align.errors import UserError, printable, shorten
from align.evaluation import multiple_choice, subject
from align.evaluation.subject import BASE, POLICY
from align.recipe import Model
from align.repair import bias, heads, training, yesno
from align.repair.yesno import PARAPHRASE, WORDS, Asked
from align.run import write_json
from align.scoring.head import causal_lm
from align.scoring.routing import routing_of

MADE = "repair.json"


def main(what: str, data: str, out: str, *, count: int, settings: list[str], as_json: bool) -> None:
    """Repairs a run's policy or a model into the run folder `out`. Raises UserError."""
    output, ledger = Path(out), Ledger()
    if output.exists():
        raise UserError("--out", f"{shorten(out, 160)} is there already", "name another folder")
    learned, measured = yesno.halves(yesno.read(data, ledger))
    processor.prepare()
    transformers_logging.disable_progress_bar()
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        try:
            model = training.start(what, output)
            parts = (yesno.asked(learned, WORDS), yesno.asked(measured, WORDS))
            prepared = training.prepare(model, parts, output, settings)
            chosen = _chosen(model, parts[0], count)
        except UserError:
            shutil.rmtree(output, ignore_errors=True)  # nothing has been trained yet
            raise
        training.train(prepared, chosen)
    made = {"align": align.__version__, "model": what, "data": data, "data_sha256": multiple_choice.data_hash(data)}
    result = {"made": made, "rows": ledger.as_dict(), **_measured(output, measured, chosen)}
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


def _measured(output: Path, measured: list, chosen: list[str]) -> dict:
    """Before and after, on questions that nothing was learned from: the chosen heads' scores, and the negative bias."""
    both = subject.load(output)
    result: dict = {"heads": {}, "questions": len(measured), "bias": {}}
    for words in (WORDS, PARAPHRASE):
        result["bias"][" or ".join(words)] = bias.measure(both, yesno.asked(measured, words), Ledger())
    prompts = [heads.locate(both.tokenizer, one) for one in yesno.asked(measured, WORDS)]
    scores = {}
    for name, (model, role) in both.heads.items():
        with routing_of(causal_lm(model)).set(role):
            scores[name] = heads.scores(model, prompts)
    for name in chosen:
        ((layer, (head,)),) = parse([name]).items()
        result["heads"][name] = {when: float(scores[when][layer, head]) for when in (BASE, POLICY)}
    return result


def table(result: dict) -> str:
    """The result for a terminal."""
    rows = result["rows"]
    dropped = "".join(f" · {printable(reason)}: {one['count']}" for reason, one in rows["dropped"].items())
    lines = [f"rows read {rows['rows_read']}, used {rows['rows_used']}{dropped}", ""]
    lines.append(f"{'head':<10}{'score before':<16}after   (on {result['questions']} other questions, both orders)")
    lines += [f"{name:<10}{own[BASE]:<16.4f}{own[POLICY]:.4f}" for name, own in result["heads"].items()]
    columns = ("bias", "precision_of_yes", "recall_of_yes", "said_yes", "accuracy")
    lines += ["", f"{'asked for':<24}" + "".join(f"{name.replace('_', ' '):<18}" for name in columns).rstrip()]
    for words, own in result["bias"].items():
        for when, title in ((BASE, "before"), (POLICY, "after")):
            cells = "".join(_number(own[when][name]).ljust(18) for name in columns)
            lines.append(f"{words + ', ' + title:<24}{cells}".rstrip())
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "yes never said" if value is None else f"{value:.3f}"
