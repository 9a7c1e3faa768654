"""The rows that runs are measured on: sources that a user names, or what a run itself has held out."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from align.data import sources
from align.data.examples import Example, RowError
from align.data.ledger import Ledger
from align.errors import UserError, shorten
from align.run import RunFolder

BENIGN = f"{sources.BUILTIN}benign"
_DATA = "--data"


@dataclass(frozen=True)
class Rows:
    """Records of one source, and what became of the others."""

    name: str  # of the source, in tables
    path: str
    where: str  # what names it, in messages
    examples: list[Example]
    ledger: Ledger
    is_own: bool = False  # held out by the run itself, or builtin:benign: read where no --data is given

    def fresh(self) -> Rows:
        """The same rows with a ledger of their own, for one measure."""
        return dataclasses.replace(self, ledger=copy.deepcopy(self.ledger))


def given(path: str, most: int | None = None) -> Rows:
    """The rows (the first `most`) of a source that the user named. Raises UserError."""
    ledger = Ledger()
    return Rows(path, path, _DATA, read(path, ledger, _DATA, most), ledger)


def held_out(run: str, most: int | None = None) -> list[Rows]:
    """What a run held out: the sources of its `eval`, its share of its own files, and builtin:benign.

    The first `most` rows of each. Raises UserError if one can no longer be read.
    """
    file, recipe, found = RunFolder(run).recipe, RunFolder(run).resolved(), []
    named = [(one["path"], one["split"]) for one in recipe["eval"]["sources"]]
    named += [(BENIGN, sources.HELD_OUT)] if (BENIGN, sources.HELD_OUT) not in named else []
    for path, split in named:
        ledger = Ledger()
        examples = sources.read(_checked(path, split, str(file)), split, on_bad_rows="skip", ledger=ledger, most=most)
        found.append(Rows(_title(path, split), path, str(file), examples, ledger, is_own=True))
    for source in recipe["data"]["sources"]:
        path, share, ledger = source["path"], recipe["eval"]["holdout"], Ledger()
        if share and not path.startswith(sources.BUILTIN):
            kept = _kept_out(_checked(path, source["split"], str(file)), source["split"], share, ledger)
            examples = list(itertools.islice(kept, most))
            if examples:
                found.append(Rows(f"{path}, held out", path, str(file), examples, ledger, is_own=True))
    return found


def read(path: str, ledger: Ledger, where: str, most: int | None = None) -> list[Example]:
    """The records (of the first `most` rows) of a source; of a builtin set the held-out ones. Raises UserError."""
    split = "train"
    if path.startswith(sources.BUILTIN) and sources.check(path, sources.HELD_OUT) is None:
        split = sources.HELD_OUT
    return sources.read(_checked(path, split, where), split, on_bad_rows="skip", ledger=ledger, most=most)


def data_hash(path: str) -> str | None:
    """SHA-256 of the local files of a source; None of other sources."""
    digest, files = hashlib.sha256(), sources.files(path) if sources.is_local(path) else []
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else None


def _kept_out(path: str, split: str, share: float, ledger: Ledger) -> Iterator[Example]:
    """The examples that a run with this `eval.holdout` kept out of training, as they come."""
    for place, row in sources.rows(path, split, on_damage=lambda error: sources.drop_damaged(error, ledger)):
        try:
            example = sources.record(path, str(place), row, ledger)
        except RowError as error:
            sources.drop_broken(place, error, ledger)
            continue
        if sources.is_held_out(example, share):
            yield example
        else:
            ledger.drop("trained on", example.place)


def _checked(path: str, split: str, where: str) -> str:
    problem = sources.check(path, split)
    if problem:
        what, fix = problem
        fix = fix if where.startswith("--") else f"put it back, or name other rows with {_DATA}"
        raise UserError(shorten(where, 160), what, fix)
    return path


def _title(path: str, split: str) -> str:
    return path if path == BENIGN or not path.startswith(sources.BUILTIN) else f"{path} {split}"
