"""Reading a source in parts, each of which can be gone on with from where it was left.

A part is a share of a source that one process reads from its beginning to its end. Plain files of lines are cut by
bytes, so that a single file serves any number of processes; compressed files and tables are dealt whole.
"""

from __future__ import annotations

import gzip
import itertools
import json
import math
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from align.data.examples import RowError
from align.errors import UserError, shorten

JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_BLOCK = 2**24  # bytes read at once where lines are only counted
_SAMPLED = 8  # files that are looked into for the number of rows


class Reader(Protocol):
    """Rows of a part. `position` is where the next row begins, in JSON's types; `rows(position)` goes on there."""

    position: list

    def rows(self) -> Iterator[tuple[object, object]]:
        """(place, row); a line that is no JSON comes as a RowError. Places are written out by `str`."""


class Place(NamedTuple):
    """Where a row stands; the places of a file sort as its rows do.

    Behind a cut by bytes the number of a line is worked out when it is written out, since that takes reading all that
    stands before.
    """

    file: str
    begin: int  # the byte at which the part begins; 0: the file is read from its beginning
    number: int  # of the line (in a table: of the row) in the part, from 1
    unit: str = ""  # what is counted, if not lines

    def __str__(self) -> str:
        return f"{self.file}:{self.unit}{_lines_before(self.file, self.begin) + self.number}"


_COUNTED: dict[str, list[tuple[int, int]]] = {}  # file -> (byte, line breaks before it), as far as they are known


def _lines_before(file: str, begin: int) -> int:
    """How many lines of a file begin before the first that begins at byte `begin` or behind it."""
    if not begin:
        return 0
    end = begin - 1  # a line break just before `begin` ends a line that began before it
    known = _COUNTED.setdefault(file, [(0, 0)])
    at, count = max(one for one in known if one[0] <= end)
    with open(file, "rb") as data:
        data.seek(at)
        while at < end and (block := data.read(min(_BLOCK, end - at))):
            count, at = count + block.count(b"\n"), at + len(block)
    known.append((at, count))
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

    def _place(self, piece: Piece) -> Place:
        return Place(piece.file, piece.begin, self.position[2])

    def _plain(self, data, piece: Piece) -> Iterator[bytes]:
        start = max(self.position[1], piece.begin)
        if start == piece.begin > 0:  # at the first line that begins here
            data.seek(piece.begin - 1)
            start += len(data.readline()) - 1
        data.seek(start)
        while piece.end is None or start < piece.end:
            line = data.readline()
            if not line and piece.end is not None:
                what = f"ends at byte {os.fstat(data.fileno()).st_size:,}; {piece.end:,} were there when it was opened"
                raise UserError(piece.file, what, "put the whole file back")
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


class Listed:
    """Rows that are in memory. `position` is [rows read]."""

    def __init__(self, found: Sequence[tuple[object, object]], position: list | None = None):
        self.found, self.position = found, list(position or [0])

    def rows(self) -> Iterator[tuple[object, object]]:
        while self.position[0] < len(self.found):
            self.position[0] += 1
            yield self.found[self.position[0] - 1]


def rows_in(files: Sequence[Path]) -> float:
    """How many rows files of lines have, about: by the bytes of the first rows of some of them."""
    sample = files[:: max(1, math.ceil(len(files) / _SAMPLED))]
    rows = looked_at = 0
    for file in sample:
        count, size = _first_rows(file)
        rows, looked_at = rows + count, looked_at + size
    return rows * (sum(file.stat().st_size for file in files) / max(looked_at, 1))


def _first_rows(file: Path) -> tuple[int, int]:
    """(rows in the first block of a file, bytes of the file that it takes)"""
    opener, errors = _opener(file)
    rows, size, last = 0, 0, b"\n"
    with open(file, "rb") as raw, opener(raw, "rb") if is_packed(file.name) else raw as data:
        try:
            while size < _BLOCK and (block := data.read(_BLOCK // 1024)):
                rows, size, last = rows + block.count(b"\n"), size + len(block), block[-1:]
        except errors:
            pass  # where it is damaged, and what then, is for who reads the rows
        return rows + (size < _BLOCK and last != b"\n"), raw.tell()  # the last line may have no line break


def is_packed(file: str) -> bool:
    return file.endswith((".gz", ".zst"))


def dealt(files: Sequence[Path], count: int) -> list[list[Path]]:
    """Files dealt whole to at most `count` parts of nearly the same bytes."""
    parts: list[list[Path]] = [[] for _ in range(min(count, len(files)))]
    filled = [0] * len(parts)
    for file in files:
        emptiest = filled.index(min(filled))
        filled[emptiest] += file.stat().st_size + 1
        parts[emptiest].append(file)
    return parts


def cut(files: Sequence[Path], count: int) -> list[list[Piece]]:
    """The pieces of each of `count` parts of files of lines: nearly the same bytes each, in the order of the files.

    Where a file is compressed files are dealt whole, so that there may be fewer parts.
    """
    if any(is_packed(file.name) for file in files):
        return [[Piece(str(file), 0, None) for file in part] for part in dealt(files, count)]
    sizes = [file.stat().st_size for file in files]
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
