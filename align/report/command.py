"""The commands `align report` and `align compare`."""

from __future__ import annotations

import json
from pathlib import Path

from align.errors import UserError, shorten
from align.report import compare, facts, model_card, page
from align.report.summary import summary
from align.run import write_text


def report(folder: str) -> None:
    """Writes report.html and the model cards again, from the files of a run. Raises UserError."""
    found = facts.read(folder)
    run = found.run
    write_text(run.report, page.of_run(found))
    cards = model_card.write(found)
    if run.final.is_dir():
        for name, text in cards.items():
            write_text(run.final / name, text)
    print(run.report)


def compare_runs(folders: list[str], out: str | None, as_json: bool) -> None:
    """Prints runs side by side, and writes their page. Raises UserError."""
    if not 2 <= len(folders) <= compare.MOST:
        raise UserError("command line", f"names {len(folders)} runs", f"compare two to {compare.MOST}")
    if out is not None and Path(out).suffix != ".html":
        raise UserError("--out", f"{shorten(out)} is no .html file", "name such a file")
    if len({Path(folder).resolve() for folder in folders}) < len(folders):
        raise UserError("command line", "names a run twice", "name each once")
    runs = compare.labelled([facts.read(folder) for folder in folders])
    if as_json:
        print(json.dumps([summary(one) for _, one in runs], indent=2, ensure_ascii=False))
    else:
        print(compare.table(runs))
    if out is not None:
        write_text(Path(out), compare.of_runs(runs))
        if not as_json:
            print(f"\n{out}")
