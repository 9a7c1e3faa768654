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
from align.run import RunFolder, read_json, write_json
from align.schema import nearest

GRID = tuple(round(0.1 * tenth, 1) for tenth in range(11))  # weights of the negative head that --tune tries


def main(given: argparse.Namespace) -> None:
    """Measures, prints, and keeps what was measured in the run folders. Raises UserError."""
    _check(given)
    longest = given.max_new_tokens or Settings.max_new_tokens
    settings = Settings(_verifier(given.verifier), given.samples or Settings.samples, longest)
    processor.prepare()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other; nothing a user can act on
    if given.curve:
        return _curves(given)
    named, results = [rows.given(path, given.rows) for path in given.data], []
    for run in given.runs:
        models = subject.load(run)
        if given.tune:
            models = dataclasses.replace(models, scores=models.scores | _tuned(models, given.tune, given.rows))
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
        results.append({"made": made, "measures": found})
    if given.json:
        told = results if len(results) > 1 else results[0]
        print(json.dumps(told, indent=2, ensure_ascii=False), flush=True)


def keep(run: RunFolder, made: dict, found: dict[str, dict]) -> None:
    """Adds measurements to `evaluations.json`, in place of those of the same name; those of other weights go."""
    before = read_json(run.evaluations)
    is_same = before.get("made", {}).get("weights_sha256") == made["weights_sha256"]
    write_json(run.evaluations, {"made": made, "measures": (before["measures"] if is_same else {}) | found})


def _check(given: argparse.Namespace) -> None:
    """Raises UserError for options that do not go together, before anything is loaded."""
    measures.check(given.measure)
    for run in given.runs if not given.curve else ():
        subject.check(run)
        read_json(RunFolder(run).evaluations)  # into which the result goes: told before hours of measuring
    final_only = {"--tune": given.tune, "--measure": given.measure, "--lm-eval": given.lm_eval,
                  "--verifier": given.verifier, "--max-new-tokens": given.max_new_tokens}  # fmt: skip
    for name, value in final_only.items():
        if value and given.curve:
            raise UserError(name, "is for final weights", f"leave out --curve, or {name}")
    for name, is_there, is_for, what, fix in (
        ("--plot", given.plot, given.curve, "draws learning curves", "add --curve"),
        ("--lm-eval-path", given.lm_eval_path, given.lm_eval, "says where tasks are", "add --lm-eval TASK"),
        ("--samples", given.samples, given.verifier, "is for pass@k", "add --verifier NAME"),
        ("--verifier", given.verifier, not given.measure or "pass_at_k" in given.measure, "is for pass_at_k",
         "add --measure pass_at_k, or leave it out"),
        ("--max-new-tokens", given.max_new_tokens, _writes(given), "is for measures that have answers written",
         "add --measure over_refusal, for one, or leave it out"),
        ("--tune", given.tune, not given.measure or measures.SCORED & {*given.measure}, "chooses between answers",
         "add --measure multiple_choice, or leave it out"),
        ("--curve", given.curve, len(given.data) == 1, "is drawn of one source", "name it with --data"),
    ):  # fmt: skip
        if is_there and not is_for:
            raise UserError(name, what, fix)
    if given.plot:
        curve.check_image(given.plot)
    if given.lm_eval:
        lm_eval_bridge.check(given.lm_eval_path)


def _writes(given: argparse.Namespace) -> bool:
    """Whether answers are written: for a measure that is named, or for those that the rows are for."""
    if given.measure:
        return bool(measures.WRITTEN & {*given.measure})
    return bool(given.verifier) or rows.BENIGN in given.data or not (given.data or given.lm_eval)


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
    examples = multiple_choice.questions(data, ledger, most=given.rows)
    curves = curve.measure(given.runs, examples, ledger)
    if given.plot:
        curve.plot(curves, given.plot)
    made = {"align": align.__version__, "data": data, "data_sha256": rows.data_hash(data), "seed": 0}
    found = {"made": made, "rows": ledger.as_dict(), "curves": curves}
    text = f"{printable(shorten(data, 80))} · {_rows_line(found['rows'])}\n\n{curve.table(curves)}"
    print(json.dumps(found, indent=2, ensure_ascii=False) if given.json else text, flush=True)


def _measured(probe: Probe, data: list[Rows], wanted: list[str], *, silent: bool) -> dict[str, dict]:
    """{measure: data: what was found}. Raises UserError if a measure that was asked for finds no use for the rows."""
    found, unused, chosen = {}, None, [(own, _names(own, probe.settings, wanted)) for own in data]
    if probe.settings.verifier and not any("pass_at_k" in names for _, names in chosen):
        raise UserError("--verifier", "no row has a right answer to compare with", "name rows with positives by --data")
    for own, names in chosen:
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


def _names(own: Rows, settings: Settings, wanted: list[str]) -> list[str]:
    """The measures of some rows: those they are for, or those that are wanted; of a run's own rows what is both."""
    fitting = measures.fitting(own, settings)
    return fitting if not wanted else [name for name in wanted if not own.is_own or name in fitting]


def _of_tasks(models: Subject, given: argparse.Namespace) -> dict[str, dict]:
    found = {}
    if given.lm_eval:
        for task, result in lm_eval_bridge.evaluate(models, given.lm_eval, given.lm_eval_path, given.rows).items():
            found[f"lm_eval: {task}"] = result
            _say(f"\nlm-eval · {printable(task)}\n{figures.table(result['metrics'])}", given.json)
    return found


def _title(name: str, result: dict) -> str:
    return f"{printable(_words(name))} · {shorten(result['data'], 80)} · {_rows_line(result['rows'])}"


def _rows_line(read: dict) -> str:
    """How many rows were used, and why not all."""
    dropped = "".join(f" · {printable(reason)}: {one['count']}" for reason, one in read["dropped"].items())
    return f"{read['rows_used']} of {read['rows_read']} rows{dropped}"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _tuned(models: Subject, tune: str, most: int | None) -> dict[str, dict[str, float]]:
    """The ratio with the weight of the negative head that does best on other questions."""
    if subject.RATIO not in models.scores:
        raise UserError("--tune", f"{models.name} has no ratio whose weight could be chosen", "leave it out")
    examples = multiple_choice.questions(tune, Ledger(), "--tune", most)
    options = multiple_choice.score(models, examples, Ledger(), "--tune")
    best = multiple_choice.best_weight(options, models.scores, SUM, GRID)
    return {f"ratio, w- {best:g} by --tune": {**models.scores[subject.RATIO], "negative": -best}}


def _say(text: str, silent: bool) -> None:
    if not silent:
        print(text, flush=True)
