"""The file in which people confirm what repair has found, or overrule it; the next run does as they say.

A line is a pair: `place`, the texts, the `evidence`, what was `proposed`, and `"decision": null`. A person writes one
of DECISIONS in place of null. Decisions stay in the file, and hold, whatever later runs find.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from align.errors import UserError, shorten
from align.negatives.options import ACTIONS
from align.run import write_text

DECISIONS = ("keep", *(action for action in ACTIONS if action != "reweight"))


def path_of(out: Path) -> Path:
    """rows.jsonl -> rows.audit.jsonl"""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.audit.jsonl")


def read(file: Path) -> dict[str, dict]:
    """id -> line of those with a decision. Raises UserError, with its line, for what cannot be read."""
    if not file.exists():
        return {}
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(str(file), f"is not UTF-8: {shorten(error)}", "save it as UTF-8") from None
    found = {}
    for number, text in enumerate(lines, 1):
        where = f"{file}:{number}"
        try:
            line = json.loads(text)
            pair, decision = line["id"], line["decision"]
        except (ValueError, KeyError, TypeError):
            raise UserError(where, "is no line of an audit file", "mend it, or move the file away") from None
        if decision is not None and decision not in DECISIONS:
            raise UserError(where, f"decision {shorten(decision)} is unknown", f"null or {', '.join(DECISIONS)}")
        if decision is not None:
            found[pair] = line
    return found


def write(file: Path, lines: Sequence[dict], decided: dict[str, dict]) -> None:
    """The lines of this run; those with a decision keep it, and those that it did not find follow."""
    fresh = {line["id"]: line for line in lines}
    for pair, line in decided.items():
        fresh[pair] = {**fresh.get(pair, line), "decision": line["decision"]}
    write_text(file, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in fresh.values()))
