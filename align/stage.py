"""The output of a stage: JSON lines that grow, and beside them how they were made. A killed one is gone on with."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from align.errors import UserError, shorten
from align.run import write_json


class Stage:
    """`NAME.jsonl` and `NAME.json`. Opening it reads the lines that are whole and cuts off one that a kill left.

    `made_by` is what the lines depend on. Raises UserError if the file was made by something else. Without `keeps_rows`
    lines are neither read nor kept in memory: for files that are written as a whole.
    """

    def __init__(self, path: Path, made_by: dict, *, keeps_rows: bool = True):
        self.path, self.about = path, path.with_suffix(".json")
        made_by = json.loads(json.dumps(made_by))
        if self.about.exists() and self.path.exists():  # else nothing is there that could be mixed
            self.facts = json.loads(self.about.read_text(encoding="utf-8"))
            self._check_same(made_by)
        else:
            self.facts = {"made_by": made_by, "begun": _now(), "finished": None}
            write_json(self.about, self.facts)
        self.rows = self._whole_lines() if keeps_rows else []

    @property
    def finished(self) -> bool:
        return self.facts["finished"] is not None

    def add(self, rows: list[dict]) -> None:
        """Writes lines; they outlive a kill from now on."""
        with open(self.path, "a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        self.rows += rows

    def write_whole(self, rows: Iterable[dict]) -> None:
        """Writes all lines, one by one; the file appears when the last one is there, or not at all."""
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(temporary, "w", encoding="utf-8") as file:
                for row in rows:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)

    def finish(self, **facts: object) -> None:
        """Notes that all lines are there, and what is to be said of them."""
        if not self.finished:
            self.path.touch()
            self.facts |= {**facts, "finished": _now()}
            write_json(self.about, self.facts)

    def _check_same(self, made_by: dict) -> None:
        before = self.facts["made_by"]
        for key in before | made_by:
            if before.get(key) != made_by.get(key):
                what = f"was made with {key} {shorten(before.get(key))}, now it is {shorten(made_by.get(key))}"
                raise UserError(str(self.path), what, "use another output, or the settings it was made with")

    def _whole_lines(self) -> list[dict]:
        if not self.path.exists():
            return []
        data = self.path.read_bytes()
        end = data.rfind(b"\n") + 1
        if end < len(data):
            os.truncate(self.path, end)
        try:
            return [json.loads(line) for line in data[:end].splitlines()]
        except ValueError as error:
            fix = "delete the file and the .json beside it, and run again"
            raise UserError(str(self.path), f"is damaged: {shorten(error)}", fix) from None


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
