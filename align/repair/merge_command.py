"""The command `align merge`: a finished run's policy, taken back towards its base."""

from __future__ import annotations

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


@dataclasses.dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    run: str
    interpolate: float | None  # either this
    sweep: list[float] | None  # or these; []: the tenths
    data: str | None
    flips: str | None
    fisher: str | None  # a source; "": the run's own rows; None: plain
    full: bool
    out: str | None
    as_json: bool


def main(asked: Asked) -> None:
    """Writes the merged weights, or measures a sweep and writes what it chooses. Raises UserError."""
    target = _check(asked)
    processor.prepare()
    transformers_logging.disable_progress_bar()
    models = subject.load(asked.run, is_whole=asked.full or asked.fisher is not None)
    if asked.full and not (RunFolder(asked.run).weights / subject.ADAPTER_FILE).is_file():
        raise UserError("--full", "the run has trained all weights: the result is full as it is", "leave it out")
    line, how = _line(asked, models)
    a, found = asked.interpolate, {}
    if asked.sweep is not None:
        found, text = _sweep(asked, models, line)
        a = found["chosen"]
        if not asked.as_json:
            print(f"{printable(asked.run)}: {how['kind']} interpolation, a = 0 is the base, 1 the policy\n{text}")
    made = {"align": align.__version__, "run": asked.run, **how, "a": a}
    if target is not None and a is not None:
        line.go_to(a)
        interpolate.write(models, asked.run, target, made)
        made["folder"] = str(target)
    if asked.as_json:
        print(json.dumps({"made": made, **found}, indent=2, ensure_ascii=False), flush=True)
    elif "folder" in made:
        print(f"result: {printable(str(target))} ({how['form']}, {how['kind']}, a = {a:g})", flush=True)
    if target is not None and a is None:
        raise UserError("--out", "the sweep chose nothing, so nothing is written", "name a weight with --interpolate")


def _check(asked: Asked) -> Path | None:
    """The folder to write, if any. Raises UserError for options that do not go together."""
    if (asked.interpolate is None) == (asked.sweep is None):
        raise UserError("command line", "names neither or both of --interpolate and --sweep", "give one of them")
    if asked.sweep is not None and asked.data is None:
        raise UserError("--sweep", "has nothing to measure on", "add --data SOURCE: rows with right and wrong answers")
    if asked.sweep is None and (asked.data or asked.flips):
        raise UserError("--data" if asked.data else "--flips", "is for a sweep", "use --sweep, or leave it out")
    for option, weights in (("--interpolate", [asked.interpolate]), ("--sweep", asked.sweep or [])):
        for a in weights:
            if a is not None and not 0 <= a <= 1:
                raise UserError(option, f"{a:g} is outside of 0..1", "0 is the base, 1 the policy")
    target = Path(asked.out) if asked.out else None
    if target is None and asked.interpolate is not None:
        kind = "" if asked.fisher is None else "-fisher"
        target = Path(asked.run) / f"merged-{asked.interpolate:g}{kind}"
    if target is not None and target.exists():
        raise UserError("--out", f"{shorten(str(target), 160)} is there already", "name another folder")
    return target


def _line(asked: Asked, models: Subject) -> tuple[Line, dict]:
    """The line, and how it is made, for merge.json."""
    line = interpolate.line(models)
    how = {"kind": "plain", "form": ADAPTER if interpolate.moves_adapter(models) else FULL}
    if asked.fisher is None:
        return line, how
    rows, origin = fisher.answers(models, asked.run, asked.fisher)
    line = dataclasses.replace(line, fisher=fisher.diagonal(models, line.parameters.keys(), rows))
    return line, how | {"kind": "fisher", "fisher_rows": origin, "fisher_answers": len(rows)}


def _sweep(asked: Asked, models: Subject, line: Line) -> tuple[dict, str]:
    """(what was measured, the same for a terminal)"""
    gain = kept = sweep.questions(asked.data, "--data")
    if asked.flips:
        kept = sweep.questions(asked.flips, "--flips")
    found = sweep.sweep(models, line, asked.sweep or sweep.TENTHS, gain, kept)
    return found, sweep.table(found)
