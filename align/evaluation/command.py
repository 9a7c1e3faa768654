"""The command `align evaluate`: which measurements, of which runs, printed how. Each is a file beside this one."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import warnings

from transformers.utils import logging as transformers_logging

import align
from align import processor
from align.data.ledger import Ledger
from align.errors import UserError, printable, shorten
from align.evaluation import curve, figures, lm_eval_bridge, measures, multiple_choice, rows, subject
from align.evaluation.probe import SUM, Probe, Unusable
from align.evaluation.rows import Rows
from align.evaluation.settings import Settings
from align.evaluation.subject import Subject
from align.judges.options import VERIFIERS, Verifier
from align.run import RunFolder, write_json
from align.schema import nearest

GRID = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # weights of the negative head that --tune tries


def main(given: argparse.Namespace) -> None:
    """Measures, prints, and keeps what was measured in the run folders. Raises UserError."""
    _check(given)
    settings = Settings(_verifier(given.verifier), given.samples or Settings.samples, given.max_new_tokens)
    processor.prepare()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other; nothing a user can act on
    if given.curve:
        return _curves(given)
    named = [rows.given(path, given.rows) for path in given.data]
    for run in given.runs:
        models = subject.load(run)
        if given.tune:
            models = dataclasses.replace(models, scores=models.scores | _tuned(models, given.tune))
        if not given.json:
            print(f"{printable(run)}\n{figures.HEADER}", flush=True)
        own = [] if named or (given.lm_eval and not given.measure) else rows.held_out(run, given.rows)
        found = _measured(Probe(models, settings), [*named, *own], given.measure, silent=given.json)
        found |= _of_tasks(models, given)
        made = {
            "align": align.__version__, "run": run, "precision": "bf16" if models.in_bf16 else "fp32", "seed": 0,
            "weights_sha256": subject.weights_hash(run),
        }  # fmt: skip
        keep(RunFolder(run), made, found)
        if given.json:
            print(json.dumps({"made": made, "measures": found}, indent=2, ensure_ascii=False), flush=True)


def keep(run: RunFolder, made: dict, found: dict[str, dict]) -> None:
    """Adds measurements to `evaluations.json`, in place of those of the same name; those of other weights go."""
    before = json.loads(run.evaluations.read_text(encoding="utf-8")) if run.evaluations.is_file() else None
    is_same = before is not None and before["made"]["weights_sha256"] == made["weights_sha256"]
    write_json(run.evaluations, {"made": made, "measures": (before["measures"] if is_same else {}) | found})


def _check(given: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, before anything is loaded."""
    measures.check(given.measure)
    final_only = {"--tune": given.tune, "--measure": given.measure, "--lm-eval": given.lm_eval,
                  "--verifier": given.verifier}  # fmt: skip
    for name, value in final_only.items():
        if value and given.curve:
            raise UserError(name, "is for final weights", f"leave out --curve, or {name}")
    for name, is_there, is_for, what, fix in (
        ("--plot", given.plot, given.curve, "draws learning curves", "add --curve"),
        ("--lm-eval-path", given.lm_eval_path, given.lm_eval, "says where tasks are", "add --lm-eval TASK"),
        ("--samples", given.samples, given.verifier, "is for pass@k", "add --verifier NAME"),
        ("--verifier", given.verifier, not given.measure or "pass_at_k" in given.measure, "is for pass_at_k",
         "add --measure pass_at_k, or leave it out"),
        ("--curve", given.curve, len(given.data) == 1, "is drawn of one source", "name it with --data"),
    ):  # fmt: skip
        if is_there and not is_for:
            raise UserError(name, what, fix)
    if given.plot:
        curve.check_image(given.plot)
    if given.lm_eval:
        lm_eval_bridge.check(given.lm_eval_path)


def _verifier(given: str | None) -> Verifier | None:
    """The verifier called NAME, or regex:PATTERN. Raises UserError."""
    if given is None:
        return None
    name, _, pattern = given.partition(":")
    if name not in VERIFIERS and "." not in name:
        raise UserError("--verifier", f"{shorten(given)}: there is no such verifier", nearest(name, list(VERIFIERS)))
    if bool(pattern) != (name == "regex"):
        raise UserError("--verifier", "a pattern is for regex, and regex needs one", "write regex:PATTERN")
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError("--verifier", f"the pattern cannot be read: {shorten(error)}", "mend it") from None
    return Verifier(name=name, pattern=pattern or None)


def _curves(given: argparse.Namespace) -> None:
    ledger, (data,) = Ledger(), given.data
    examples = multiple_choice.questions(data, ledger)[: given.rows]
    curves = curve.measure(given.runs, examples)
    if given.plot:
        curve.plot(curves, given.plot)
    made = {"align": align.__version__, "data": data, "data_sha256": rows.data_hash(data), "seed": 0}
    found = {"made": made, "rows": ledger.as_dict(), "curves": curves}
    print(json.dumps(found, indent=2, ensure_ascii=False) if given.json else curve.table(curves), flush=True)


def _measured(probe: Probe, data: list[Rows], wanted: list[str], *, silent: bool) -> dict[str, dict]:
    """{measure: data: what was found}. Raises UserError if a measure that was asked for finds no use for the rows."""
    found, unused = {}, None
    for own in data:
        fitting = measures.fitting(own, probe.settings)
        names = fitting if not wanted else [name for name in wanted if not own.is_own or name in fitting]
        for name in names:
            try:
                result = measures.evaluate(name, probe, own) | {"data_sha256": rows.data_hash(own.path)}
            except Unusable as error:
                if wanted:
                    raise
                unused = error
                _say(f"\n{printable(f'{_words(name)} · {own.name}: left out: {error.what}')}", silent)
                continue
            found[f"{name}: {own.name}"] = result
            _say(f"\n{_title(name, result)}\n{figures.table(result['metrics'])}", silent)
    if data and not found:
        raise unused or UserError("--measure", "none of what the run has held out is for it", "name rows with --data")
    return found


def _of_tasks(models: Subject, given: argparse.Namespace) -> dict[str, dict]:
    found = {}
    if given.lm_eval:
        for task, result in lm_eval_bridge.evaluate(models, given.lm_eval, given.lm_eval_path, given.rows).items():
            found[f"lm_eval: {task}"] = result
            _say(f"\nlm-eval · {printable(task)}\n{figures.table(result['metrics'])}", given.json)
    return found


def _title(name: str, result: dict) -> str:
    read = result["rows"]
    dropped = "".join(f" · {reason}: {one['count']}" for reason, one in read["dropped"].items())
    used = f"{read['rows_used']} of {read['rows_read']} rows"
    return printable(f"{_words(name)} · {shorten(result['data'], 80)} · {used}{dropped}")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _tuned(models: Subject, tune: str) -> dict[str, dict[str, float]]:
    """The ratio with the weight of the negative head that does best on other questions."""
    if subject.RATIO not in models.scores:
        raise UserError("--tune", f"{models.name} has no ratio whose weight could be chosen", "leave it out")
    options = multiple_choice.score(models, multiple_choice.questions(tune, Ledger(), "--tune"), Ledger(), "--tune")
    best = multiple_choice.best_weight(options, models.scores, SUM, GRID)
    return {f"ratio, w- {best:g} by --tune": {**models.scores[subject.RATIO], "negative": -best}}


def _say(text: str, silent: bool) -> None:
    if not silent:
        print(text, flush=True)
