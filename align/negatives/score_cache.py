"""Scores on disk, found by what they were computed from, so that another strategy asks no model.

One SQLite file of keys (32 bytes, a SHA-256) and values (bytes of numbers). It is read where it lies, so memory does
not grow with it; a batch is written whole or not at all, also by a process that is killed.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import contextmanager
from pathlib import Path

from align.errors import UserError, shorten
from align.models import cache_folder

_AT_ONCE = 500  # keys of a query
_WAIT = 60.0  # seconds, for another process that writes


def default_file() -> Path:
    """Where `align mine` keeps scores."""
    return cache_folder() / "mining" / "scores.sqlite"


def key(*parts: str) -> bytes:
    """The key of some texts, none of which can be taken for two others."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class ScoreCache:
    """Keys and values on disk; several processes may share the file. Raises UserError where it is of no use."""

    def __init__(self, file: Path):
        self.file = file
        with self._told():
            file.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(file, timeout=_WAIT, isolation_level=None)
            self._db.execute("CREATE TABLE IF NOT EXISTS scores (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")

    def get(self, keys: Sequence[bytes]) -> dict[bytes, bytes]:
        """The values of those keys that are there."""
        return dict(self._select("key, value", keys))

    def known(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those keys that are there."""
        return {row[0] for row in self._select("key", keys)}

    def put(self, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Keeps all of some keys and values, or none of them."""
        with self._told():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?)", items)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def close(self) -> None:
        self._db.close()

    def _select(self, columns: str, keys: Sequence[bytes]) -> list[tuple]:
        found = []
        with self._told():
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                found += self._db.execute(f"SELECT {columns} FROM scores WHERE key IN ({marks})", some).fetchall()
        return found

    @contextmanager
    def _told(self):
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            fix = "make room, or delete the file: what it held is scored again"
            raise UserError(str(self.file), f"scores cannot be kept: {shorten(error)}", fix) from None
