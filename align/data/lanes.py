"""One part of a source, read row by row through a shuffle buffer, epoch after epoch, and gone on with exactly."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from align.data import sources
from align.data.examples import Example, RowError
from align.data.ledger import Ledger
from align.data.readers import Place, Reader
from align.data.tokenize import TokenizedRow
from align.errors import UserError

Open = Callable[[list | None], Reader]  # a part of a source, from a position on
Parse = Callable[[object, object, Ledger], Example | None]  # (place, row); None: counted in the ledger
Encode = Callable[[Example, Ledger], Iterator[TokenizedRow]]


@dataclass(frozen=True)
class Raw:
    """A row as it was read."""

    place: Place
    row: object
    size: int  # characters, about


@dataclass
class Lane:
    """Draws rows from a part of a source. Which one is next is a function of `name`, the epoch and what it holds."""

    name: str
    open: Open
    parse: Parse
    encode: Encode
    buffer_size: int  # rows
    most_buffered: int  # their characters, about
    skips_damage: bool  # a file that cannot be read further is left where it breaks, and counted
    ledger: Ledger
    source: str = ""  # under which its rows are counted
    epoch: int = 0
    drawn: int = 0  # rows taken out of the buffer in this epoch
    buffer: list[Raw] = field(default_factory=list)
    current: tuple[Raw, int] | None = None  # a row that gives several (NAT), and how many of them are still to come
    _left: list[TokenizedRow] = field(default_factory=list)  # these
    _reader: Reader | None = None
    _rows: Iterator[tuple[object, object]] | None = None

    def begin(self, epoch: int) -> None:
        """Starts an epoch at the beginning of the part."""
        self.epoch, self.drawn = epoch, 0
        self._open(None)

    def draw(self) -> TokenizedRow | None:
        """The next row that can be used; None at the end of the epoch."""
        if self._reader is None:
            self._open(None)
        while not self._left:
            raw = self._from_buffer()
            if raw is None:
                self.current = None
                return None
            example = self.parse(raw.place, raw.row, self.ledger)
            self._left = [] if example is None else list(self.encode(example, self.ledger))
            self.current = raw, len(self._left)
        row, self._left = self._left[0], self._left[1:]
        self.current = (self.current[0], len(self._left)) if self._left else None
        self.ledger.used += 1
        self.ledger.count(self.source, row.roles())
        return row

    def state(self) -> dict:
        """All that `restore` needs, in JSON's types."""
        return {
            "epoch": self.epoch,
            "drawn": self.drawn,
            "position": list(self._reader.position) if self._reader else None,
            "buffer": [_packed(raw) for raw in self.buffer],
            "current": self.current and [_packed(self.current[0]), self.current[1]],
        }

    def restore(self, state: dict) -> None:
        """Goes on where a lane of the same name was when it gave its `state`; the file is not read from its start."""
        self.epoch, self.drawn = state["epoch"], state["drawn"]
        self.buffer = [_unpacked(raw) for raw in state["buffer"]]
        self._open(state["position"])
        self._left, self.current = [], None
        if state["current"]:
            raw, count = _unpacked(state["current"][0]), state["current"][1]
            example = self.parse(raw.place, raw.row, Ledger())  # it has been counted
            self._left, self.current = list(self.encode(example, Ledger()))[-count:], (raw, count)

    def _from_buffer(self) -> Raw | None:
        held = sum(raw.size for raw in self.buffer)
        while len(self.buffer) < self.buffer_size and held < self.most_buffered and (raw := self._next()) is not None:
            self.buffer.append(raw)
            held += raw.size
        if not self.buffer:
            return None
        digest = hashlib.sha256(f"{self.name}/{self.epoch}/{self.drawn}".encode()).digest()
        index, self.drawn = int.from_bytes(digest[:8], "big") % len(self.buffer), self.drawn + 1
        self.buffer[index], self.buffer[-1] = self.buffer[-1], self.buffer[index]
        return self.buffer.pop()

    def _next(self) -> Raw | None:
        """The next row that is whole; broken ones are left to `parse`, which counts them or stops the run."""
        while True:
            try:
                found = next(self._rows, None)
            except UserError as error:
                if not self.skips_damage:
                    raise
                sources.drop_damaged(error, self.ledger)
                self._reader.next_piece()
                self._rows = self._reader.rows()
                continue
            if found is None or not isinstance(found[1], RowError):
                return found and Raw(*found, len(str(found[1])))
            self.parse(*found, self.ledger)

    def _open(self, position: list | None) -> None:
        self._reader = self.open(position)
        self._rows = self._reader.rows()


def _packed(raw: Raw) -> list:
    return [list(raw.place), raw.row, raw.size]


def _unpacked(values: list) -> Raw:
    place, row, size = values
    return Raw(Place(*place), row, size)
