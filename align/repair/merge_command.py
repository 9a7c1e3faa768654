"""The command `align merge`: a finished run's policy, taken back towards its base."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from transformers.utils import logging as transformers_logging

import align
from align import processor
from align.errors import UserError, printable, shorten
from align.evaluation import subject
from align.evaluation.subject import Subject
from align.repair import fisher, interpolate, sweep
from align.repair.interpolate import ADAPTER, FULL, Line
from align.run import RunFolder


def main(given: argparse.Namespace) -> None:
    """Writes the merged weights, or measures a sweep and writes what it chooses. Raises UserError."""
    target = _check(given)
    processor.prepare()
    transformers_logging.disable_progress_bar()
    models = subject.load(given.run_folder, is_whole=given.full or given.fisher is not None)
    if given.full and not (RunFolder(given.run_folder).weights / subject.ADAPTER_FILE).is_file():
        raise UserError("--full", "the run has trained all weights: the result is full as it is", "leave it out")
    line, how = _line(given, models)
    a, found = given.interpolate, {}
    if given.sweep is not None:
        found, text = _sweep(given, models, line)
        a = found["chosen"]
        if not given.json:
            print(f"{printable(given.run_folder)}: {how['kind']} interpolation, 0 is the base, 1 the policy\n{text}")
    made = {"align": align.__version__, "run": given.run_folder, **how, "a": a}
    if target is not None and a is not None:
        line.go_to(a)
        interpolate.write(models, given.run_folder, target, made)
        made["folder"] = str(target)
    if given.json:
        print(json.dumps({"made": made, **found}, indent=2, ensure_ascii=False), flush=True)
    elif "folder" in made:
        print(f"result: {printable(str(target))} ({how['form']}, {how['kind']}, a = {a:g})", flush=True)
    if target is not None and a is None:
        raise UserError("--out", "the sweep chose nothing, so nothing is written", "name a weight with --interpolate")


def _check(given: argparse.Namespace) -> Path | None:
    """The folder to write, if any. Raises UserError for options that do not go together."""
    if (given.interpolate is None) == (given.sweep is None):
        raise UserError("command line", "names neither or both of --interpolate and --sweep", "give one of them")
    if given.sweep is not None and given.data is None:
        raise UserError("--sweep", "has nothing to measure on", "add --data SOURCE: rows with right and wrong answers")
    if given.full and given.out is None and given.sweep is not None:
        raise UserError("--full", "is for what is written, and a sweep writes nothing by itself", "add --out FOLDER")
    if given.sweep is None and (given.data or given.flips):
        raise UserError("--data" if given.data else "--flips", "is for a sweep", "use --sweep, or leave it out")
    for option, weights in (("--interpolate", [given.interpolate]), ("--sweep", given.sweep or [])):
        for a in weights:
            if a is not None and not 0 <= a <= 1:
                raise UserError(option, f"{a:g} is outside of 0..1", "0 is the base, 1 the policy")
    target = Path(given.out) if given.out else None
    if target is None and given.interpolate is not None:
        kind = "" if given.fisher is None else "-fisher"
        target = Path(given.run_folder) / f"merged-{given.interpolate:g}{kind}"
    if target is not None and target.exists():
        raise UserError("--out", f"{shorten(str(target), 160)} is there already", "name another folder")
    return target


def _line(given: argparse.Namespace, models: Subject) -> tuple[Line, dict]:
    """The line, and how it is made, for merge.json."""
    line = interpolate.line(models)
    how = {"kind": "plain", "form": ADAPTER if interpolate.moves_adapter(models) else FULL}
    if given.fisher is None:
        return line, how
    rows, origin = fisher.answers(models, given.run_folder, given.fisher)
    line = dataclasses.replace(line, fisher=fisher.diagonal(models, line.parameters.keys(), rows))
    return line, how | {"kind": "fisher", "fisher_rows": origin, "fisher_answers": len(rows)}


def _sweep(given: argparse.Namespace, models: Subject, line: Line) -> tuple[dict, str]:
    """(what was measured, the same for a terminal)"""
    gain = kept = sweep.questions(given.data, "--data")
    if given.flips:
        kept = sweep.questions(given.flips, "--flips")
    found = sweep.sweep(models, line, given.sweep or sweep.TENTHS, gain, kept)
    return found, sweep.table(found)
