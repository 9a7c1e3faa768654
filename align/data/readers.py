"""Reading a source in parts, each of which can be gone on with from where it was left.

A part is a share of a source that one process reads from its beginning to its end. Plain files of lines are cut by
bytes, so that a single file serves any number of processes; compressed files and tables are dealt whole.
"""

from __future__ import annotations

import functools
import gzip
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from align.data.examples import RowError
from align.errors import UserError, shorten

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TABLES = {".csv": "csv", ".parquet": "parquet", ".json": "json"}
_BLOCK = 2**24  # bytes read at once where lines are only counted


class Reader(Protocol):
    """Rows of a part. `position` is where the next row begins, in JSON's types; `rows(position)` goes on there."""

    position: list

    def rows(self) -> Iterator[tuple[object, object]]:
        """(place, row); a line that is no JSON comes as a RowError. Places are written out by `str`."""


@dataclass(frozen=True)
class LinePlace:
    """Where a line of a file stands. Its number is worked out when it is written out, behind a cut by bytes."""

    file: str
    begin: int  # the byte at which the part begins
    number: int  # of the line in the part, from 1

    def __str__(self) -> str:
        return f"{self.file}:{_lines_before(self.file, self.begin) + self.number}"


@functools.lru_cache(maxsize=256)
def _lines_before(file: str, begin: int) -> int:
    """How many lines of a file begin before the first that begins at byte `begin` or behind it."""
    if not begin:
        return 0
    count, left = 0, begin - 1  # a line break just before `begin` ends a line that began before it
    with open(file, "rb") as data:
        while left > 0 and (block := data.read(min(_BLOCK, left))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count + 1


class Piece(NamedTuple):
    """The lines of a file that begin in bytes [begin, end); a compressed file is never cut."""

    file: str
    begin: int
    end: int | None  # None: up to its end


class Lines:
    """Rows of pieces of JSON-lines files, in their order.

    `position` is [piece, byte offset (of a compressed file: lines read), lines of the piece read].
    """

    def __init__(self, pieces: Sequence[Piece], position: list | None = None):
        self.pieces, self.position = pieces, list(position or [0, 0, 0])

    def rows(self) -> Iterator[tuple[object, object]]:
        while self.position[0] < len(self.pieces):
            piece = self.pieces[self.position[0]]
            read = self._packed if is_packed(piece.file) else self._plain
            opener, errors = _opener(Path(piece.file))
            try:
                with opener(piece.file, "rb") as data:
                    for line in read(data, piece):
                        if line.strip():
                            yield self._place(piece), _json(line)
            except errors as error:
                what, fix = f"cannot be read to its end: {shorten(error)}", "copy the file again"
                raise UserError(str(self._place(piece)) if self.position[2] else piece.file, what, fix) from None
            self.next_piece()

    def next_piece(self) -> None:
        """Goes on with the next piece, as behind one that cannot be read further."""
        self.position = [self.position[0] + 1, 0, 0]

    def _place(self, piece: Piece) -> str | LinePlace:
        number = self.position[2]
        return LinePlace(piece.file, piece.begin, number) if piece.begin else f"{piece.file}:{number}"

    def _plain(self, data, piece: Piece) -> Iterator[bytes]:
        start = max(self.position[1], piece.begin)
        if start == piece.begin > 0:  # at the first line that begins here
            data.seek(piece.begin - 1)
            start += len(data.readline()) - 1
        data.seek(start)
        while piece.end is None or start < piece.end:
            line = data.readline()
            if not line:
                return
            start += len(line)
            self.position[1:] = [start, self.position[2] + 1]
            yield line

    def _packed(self, data, piece: Piece) -> Iterator[bytes]:
        for _ in range(self.position[1]):
            data.readline()
        while line := data.readline():
            self.position[1:] = [self.position[1] + 1] * 2
            yield line


class Table:
    """Rows that the `datasets` library streams: CSV, Parquet, JSON and hub data sets."""

    def __init__(self, path: str, dataset, position: list | None = None, name: str = ""):
        self.path, self.dataset, self.name = path, dataset, name
        self.number = 0
        if position:
            self.number, state = position
            self.dataset.load_state_dict(state)

    @property
    def position(self) -> list:
        return [self.number, self.dataset.state_dict()]

    def rows(self) -> Iterator[tuple[object, object]]:
        try:
            for row in self.dataset:
                self.number += 1
                yield f"{self.path}:{self.name}row {self.number}", row
        except Exception as error:  # the library raises anything from OSError to its own classes
            raise table_error(self.path, error) from None

    def next_piece(self) -> None:
        """There is no other."""


class Listed:
    """Rows that are in memory. `position` is [rows read]."""

    def __init__(self, found: Sequence[tuple[object, object]], position: list | None = None):
        self.found, self.position = found, list(position or [0])

    def rows(self) -> Iterator[tuple[object, object]]:
        while self.position[0] < len(self.found):
            self.position[0] += 1
            yield self.found[self.position[0] - 1]


def table_error(path: str, error: Exception) -> UserError:
    fix = "check the file" if Path(path).suffix in TABLES else "check the name, the split and the network"
    return UserError(path, f"cannot be read: {type(error).__name__}: {shorten(error, 120)}", fix)


def open_table(path: str, split: str, files: Sequence[Path]):
    """The iterable data set of a hub id, or of table files of one kind. Raises UserError."""
    import datasets

    datasets.disable_progress_bars()
    try:
        if files:
            kind = TABLES[files[0].suffix]
            return datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train", streaming=True)
        return datasets.load_dataset(path, split=split, streaming=True)
    except Exception as error:  # see Table
        raise table_error(path, error) from None


def table_parts(path: str, split: str, files: Sequence[Path], count: int) -> list[Callable[[list | None], Table]]:
    """What opens each part of tables of one kind, or of a hub data set: as many as it has shards, at most `count`."""
    shards = min(count, max(1, open_table(path, split, files).num_shards))

    def opened(index: int, position: list | None) -> Table:
        dataset = open_table(path, split, files)
        name = f"part {index + 1} of {shards}, " if shards > 1 else ""
        where = str(files[0]) if len(files) == 1 else path
        return Table(where, dataset.shard(shards, index) if shards > 1 else dataset, position, name)

    return [functools.partial(opened, index) for index in range(shards)]


def rows_in(file: Path) -> float | None:
    """How many rows a file has: counted where the format tells, estimated from the first ones in text."""
    if file.suffix == ".parquet":
        from pyarrow import parquet

        return float(parquet.read_metadata(file).num_rows)
    if file.suffix == ".json":
        return None
    opener, errors = _opener(file)
    try:
        with open(file, "rb") as raw, opener(raw, "rb") if is_packed(file.name) else raw as data:
            head = data.read(_BLOCK)
            return head.count(b"\n") * (file.stat().st_size / max(raw.tell(), 1))
    except errors as error:
        raise UserError(str(file), f"cannot be read: {shorten(error)}", "copy the file again") from None


def rows_of_hub(path: str, split: str) -> float | None:
    splits = open_table(path, split, []).info.splits or {}
    return float(splits[split].num_examples) if split in splits and splits[split].num_examples else None


def is_packed(file: str) -> bool:
    return file.endswith((".gz", ".zst"))


def cut(files: Sequence[Path], count: int) -> list[list[Piece]]:
    """The pieces of each of `count` parts of files of lines: nearly the same bytes each, in the order of the files.

    Where a file is compressed files are dealt whole, so that there may be fewer parts.
    """
    sizes = [file.stat().st_size for file in files]
    if any(is_packed(file.name) for file in files):
        parts: list[list[Piece]] = [[] for _ in range(min(count, len(files)))]
        filled = [0] * len(parts)
        for file, size in zip(files, sizes, strict=True):
            emptiest = filled.index(min(filled))
            filled[emptiest] += size + 1
            parts[emptiest].append(Piece(str(file), 0, None))
        return parts
    total, parts, before = sum(sizes), [[] for _ in range(count)], 0
    borders = [total * index // count for index in range(count + 1)]
    for file, size in zip(files, sizes, strict=True):
        for index, (low, high) in enumerate(itertools.pairwise(borders)):
            begin, end = max(low - before, 0), min(high - before, size)
            if begin < end:
                parts[index].append(Piece(str(file), begin, end))
        before += size
    return parts


def _opener(file: Path) -> tuple[Callable, tuple[type[Exception], ...]]:
    """What opens a file of lines, and the errors of a damaged one."""
    if file.suffix == ".gz":
        return gzip.open, (OSError, EOFError, zlib.error)
    if file.suffix != ".zst":
        return open, (OSError,)
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd.open, (OSError, EOFError, zstd.ZstdError)


def _json(line: bytes) -> object:
    """The value on one line, or the RowError that says why there is none."""
    try:
        return json.loads(line.rstrip())  # without its line break, behind which a cut-off row would be at column 1
    except UnicodeDecodeError:
        return RowError("is not UTF-8 text")
    except json.JSONDecodeError as error:
        return RowError(f"is not valid JSON at column {error.colno}")
    except RecursionError:
        return RowError("is not valid JSON")
    except ValueError:  # Python limits the digits of the integers it reads
        return RowError("holds a number of too many digits")
