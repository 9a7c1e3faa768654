"""Per-token log-probs of references on disk, found by what they were computed from.

    FOLDER/<identity of the reference, 64 hex digits>/part-<rank>-<time>-<random>.bin

A response's key is the SHA-256 of the reference's identity, its prompt's and its own token ids and its mask (which
tokens are the response's). So learning rate, beta, rank, objective and output may change, and another model, text
or arithmetic finds nothing that is not its own.

Every process writes a part of its own, only ever at its end, and everybody reads all parts: several ranks and runs
share a folder without locks. (SQLite would need locks that work, and shared memory for its write-ahead log; network
file systems give neither for certain.) A killed writer leaves one cut-off record, damage costs the records it
touches; both are noticed and scored again. `records` has the format.
"""

from __future__ import annotations

import array
import functools
import hashlib
import json
import os
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align.data.tokenize import TokenizedRow
from align.errors import printable, shorten
from align.models import cache_folder
from align.reference import records

Key = bytes  # 32

STORE_OFF = "off"  # `reference.store` of a run without a store
_MOST_OPEN = 64  # part files kept open for reading
# What a configuration says that does not change what the model computes.
_NOT_COMPUTED = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "gradient_checkpointing",
                 "bos_token_id", "eos_token_id", "pad_token_id")  # fmt: skip


def default_folder() -> Path:
    """Where `reference.store: auto` keeps log-probs."""
    return cache_folder() / "reference"


def store_folder(named: str) -> Path:
    """The folder that `reference.store` names; not for `off`."""
    return default_folder() if named == "auto" else Path(named).expanduser()


def identity(weights_sha256: str, config: dict, arithmetic: str) -> str:
    """Who computes log-probs, as 64 hex digits: weights (with their types), configuration, and fp32 or bf16.

    Two models with the same weights and, say, another rotary base are two models.
    """
    told = {name: value for name, value in config.items() if name[0] != "_" and name not in _NOT_COMPUTED}
    text = json.dumps([weights_sha256, told, arithmetic], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def response_keys(identity: str, rows: Iterable[TokenizedRow]) -> list[Key]:
    """The keys of all responses of some rows, in order."""
    keys = []
    for row in rows:
        prompt = hashlib.sha256(bytes.fromhex(identity) + _ids(row.prompt_ids))
        for response in row.responses:
            whole = prompt.copy()
            whole.update(_ids(response.ids))
            keys.append(whole.digest())
    return keys


def _ids(ids: Sequence[int]) -> bytes:
    """Token ids with their number in front: the two numbers of a response are its mask."""
    numbers = array.array("i", ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    return struct.pack("<Q", len(ids)) + numbers.tobytes()


@dataclass
class _Part:
    """How far a part file has been read."""

    path: Path
    walked: int = 0  # bytes, up to the end of the last whole frame
    seen: int = 0  # its size when it was last looked at
    is_ours: bool = True  # whether the records after `walked` belong to the reference


class Store:
    """The log-probs of one reference. For one process; any number of processes may use the same folder.

    A missing folder is an empty store. What cannot be written is told once on stderr, and the store goes on
    without writing.
    """

    def __init__(self, folder: str | Path, identity: str, *, dtype: str = "float32", rank: int = 0):
        self.identity, self.folder = identity, Path(folder) / identity
        self._identity, self._width, self._rank = bytes.fromhex(identity), records.WIDTHS[dtype], rank
        self._index: dict[Key, int] = {}  # where a record is, see `_place`
        self._copies: dict[Key, list[int]] = {}  # where else, for the few that were written more than once
        self._parts: list[_Part] = []
        self._known: set[str] = set()  # names of the parts
        self._open: dict[int, object] = {}  # number of a part -> its file
        self._out, self._own = None, -1  # the file that this process writes, and its number
        self.damaged = 0  # damaged places that were met
        self.problem: str | None = None  # why nothing is written any more
        self.refresh()

    @property
    def num_entries(self) -> int:
        return len(self._index)

    def __contains__(self, key: Key) -> bool:
        return key in self._index

    def refresh(self) -> None:
        """Takes notice of what other processes have written since; reads new bytes only."""
        try:
            names = {name for name in os.listdir(self.folder) if name.startswith("part-")} - self._known
        except OSError:
            return
        # Of two copies the first one counts, so that a resumed rank finds what it found before: its own come first.
        own = f"part-{self._rank:05d}-"
        self._parts += [_Part(self.folder / name) for name in sorted(names, key=lambda n: (not n.startswith(own), n))]
        self._known |= names
        for number, part in enumerate(self._parts):
            if number != self._own:
                self._walk_on(number, part)

    def _walk_on(self, number: int, part: _Part) -> None:
        try:
            size = part.path.stat().st_size
            if size <= part.seen:
                return
            with open(part.path, "rb", buffering=0) as file:
                for found in records.walk(functools.partial(read_at, file), part.walked, size):
                    self._take(number, part, found)
        except OSError as error:
            return self._note(part.path, shorten(error))
        part.seen = size

    def _take(self, number: int, part: _Part, found: records.Frame | records.Gap) -> None:
        if isinstance(found, records.Gap):
            return self._note(part.path, f"damaged at byte {found.offset}")
        part.walked = found.offset + found.size
        if found.is_label:
            part.is_ours = found.name == self._identity and found.count == records.VERSION
            if not part.is_ours:
                self._note(part.path, f"written for another reference or by another version, at byte {found.offset}")
        elif part.is_ours and found.width >= self._width:  # float16 is not read where float32 is asked for
            self._add(found.name, _place(number, found.offset, found.size))

    def _add(self, key: Key, place: int) -> None:
        if self._index.setdefault(key, place) != place:
            self._copies.setdefault(key, []).append(place)

    def get(self, keys: Sequence[Key]) -> list[np.ndarray | None]:
        """(T,) float32 log-probs of each key; None for those that are not there, or damaged."""
        if any(key not in self._index for key in keys):
            self.refresh()
        return [self._value(key) for key in keys]

    def _value(self, key: Key) -> np.ndarray | None:
        while (place := self._index.get(key)) is not None:
            number, offset, size = _where(place)
            values = records.values_of(self._identity, key, self._bytes(number, offset, size))
            if values is not None:
                return self.rounded(values)
            self._note(self._parts[number].path, f"damaged at byte {offset}")
            copies = self._copies.get(key)
            if copies:
                self._index[key] = copies.pop(0)
            else:
                del self._index[key]
        return None

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        """What a part has there; less if it cannot be read."""
        try:
            if number not in self._open:
                if len(self._open) >= _MOST_OPEN:
                    self._open.clear()
                self._open[number] = open(self._parts[number].path, "rb", buffering=0)
            return read_at(self._open[number], offset, size)
        except OSError:
            return b""

    def rounded(self, values: np.ndarray) -> np.ndarray:
        """(T,) float32: the values as they will be read from the store, so that the first use is like every later."""
        return values.astype(f"<f{self._width}", copy=False).astype(np.float32, copy=False)

    @property
    def rounding(self) -> float:
        """How far read values may be from those that were put, as a mean over a response in nats a token."""
        return 0.0 if self._width == 4 else 0.01  # float16: half a unit in the last place, 0.008 from 16 nats on

    def put(self, items: dict[Key, np.ndarray]) -> None:
        """Writes (T,) log-probs; when this returns other processes can read them, also if this one is then killed.

        Values that are not finite are left out: they stop a run, and must not stop the next one.
        """
        whole = {key: values for key, values in items.items() if np.isfinite(values).all()}
        if self.problem or not whole:
            return
        frames = [records.record(self._identity, key, v.astype(f"<f{self._width}")) for key, v in whole.items()]
        try:
            offset = self._append(frames)
        except OSError as error:
            self.problem = shorten(error)
            what = f"nothing more is stored in {self.folder}: {self.problem}; what is missing is scored again"
            print(printable(f"reference.store: {what}"), file=sys.stderr, flush=True)
            return
        for key, frame in zip(whole, frames, strict=True):
            self._add(key, _place(self._own, offset, len(frame)))
            offset += len(frame)

    def _append(self, frames: list[bytes]) -> int:
        """Writes frames to this process's part, made when first needed. Returns the offset of the first."""
        if self._out is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            name = f"part-{self._rank:05d}-{time.time_ns():016x}-{os.urandom(4).hex()}.bin"
            self._out = open(self.folder / name, "xb", buffering=0)
            self._own = len(self._parts)
            self._parts.append(_Part(self.folder / name))
            self._known.add(name)
        part = self._parts[self._own]
        begin = b"" if part.walked else records.label(self._identity)
        data = memoryview(begin + b"".join(frames))
        try:
            written = 0
            while written < len(data):
                written += self._out.write(data[written:])
        except OSError:
            self._out.truncate(part.walked)  # half a batch is of no use to anyone
            raise
        first, part.walked = part.walked + len(begin), part.walked + len(data)
        return first

    def _note(self, path: Path, what: str) -> None:
        if not self.damaged:
            line = f"reference.store: {path}: {what}; such entries are scored again (align ref verify tells all)"
            print(printable(line), file=sys.stderr, flush=True)
        self.damaged += 1


def _place(number: int, offset: int, size: int) -> int:
    """Part, offset and size in one number: a tuple of three would take three times the memory."""
    return number << 96 | offset << 40 | size


def _where(place: int) -> tuple[int, int, int]:
    return place >> 96, place >> 40 & (1 << 56) - 1, place & (1 << 40) - 1


def read_at(file, offset: int, size: int) -> bytes:
    """`size` bytes; less at the end of the file only."""
    data = os.pread(file.fileno(), size, offset)
    while len(data) < size and (more := os.pread(file.fileno(), size - len(data), offset + len(data))):
        data += more
    return data
