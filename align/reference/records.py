"""The frames in which per-token log-probs lie on disk, and how a damaged file is read.

A file is a row of frames. A frame begins with a head of 48 bytes, little-endian:

    magic (4) · name (32) · width (4) · count (4) · CRC-32 of the head (4)

* `width` 4 or 2: a record. `name` is its key, `count` the number of float32 or float16 values. They follow the
  head, and behind them 16 bytes of BLAKE2b over head and values, keyed with the reference's identity, so that a
  record is valid for one reference only.
* `width` 0: a label, nothing follows. `name` is the identity of the reference that the next records belong to,
  `count` the version of this format.

Heads can be walked without reading the values. Where no head is found, whatever is missing, flipped or strange, the
search goes on at the next magic behind the last good head: damage costs the records it touches and no others.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

VERSION = 1
WIDTHS = {"float32": 4, "float16": 2}  # bytes of a value
_TYPES = {4: np.dtype("<f4"), 2: np.dtype("<f2")}
_MAGIC = b"\xabALR"
_HEAD, _CRC = struct.Struct("<4s32sIII"), struct.Struct("<I")
_CHECKED = _HEAD.size - _CRC.size  # bytes of a head that its CRC covers
_DIGEST = 16
_BLOCK = 1 << 22  # bytes read at once while walking

ReadAt = Callable[[int, int], bytes]  # (offset, size) -> what is there; less at the end of the file


class Frame(NamedTuple):
    """A head that was found, and where."""

    offset: int
    name: bytes
    width: int
    count: int

    @property
    def is_label(self) -> bool:
        return self.width == 0

    @property
    def size(self) -> int:
        """Bytes of the whole frame."""
        return _size(self.width, self.count)


class Gap(NamedTuple):
    """Bytes that are no frame, with a frame behind them."""

    offset: int
    end: int


def label(identity: bytes) -> bytes:
    """The frame that says whose the next records are."""
    return _head(identity, 0, VERSION)


def record(identity: bytes, key: bytes, values: np.ndarray) -> bytes:
    """The frame of some values (T,) float32 or float16."""
    width = values.dtype.itemsize
    body = _head(key, width, len(values)) + values.astype(_TYPES[width], copy=False).tobytes()
    return body + _digest(identity, body)


def values_of(identity: bytes, key: bytes, frame: bytes) -> np.ndarray | None:
    """(T,) the values of a record's bytes as they were stored; None if it is not what was written under this key."""
    body, digest = memoryview(frame)[:-_DIGEST], frame[-_DIGEST:]
    if len(frame) < _HEAD.size + _DIGEST or _digest(identity, body) != digest:
        return None
    _, name, width, count, _ = _HEAD.unpack_from(body)
    if name != key or width not in _TYPES or len(body) != _HEAD.size + width * count:
        return None
    return np.frombuffer(body, _TYPES[width], offset=_HEAD.size)


def walk(read: ReadAt, start: int, end: int) -> Iterator[Frame | Gap]:
    """The frames between two offsets of a file, and the gaps between them.

    What is behind the last one (a record that is being written, or was cut off) is not told: it lies between the
    end of the last frame and `end`.
    """
    offset, searched = start, start  # where a frame should begin; where a search begins if there is none
    base, block = start, b""
    unpack, crc, head_size = _HEAD.unpack_from, zlib.crc32, _HEAD.size
    while offset < end:
        at = offset - base
        if at < 0 or at + head_size > len(block):
            base, block, at = offset, read(offset, _BLOCK), 0
        if at + head_size <= len(block):
            magic, name, width, count, checksum = unpack(block, at)
            if magic == _MAGIC and crc(block[at : at + _CHECKED]) == checksum:
                following = offset + _size(width, count)
                if following <= end:
                    yield Frame(offset, name, width, count)
                    searched, offset = offset + head_size, following
                    continue
        found = _search(read, max(searched, start), end)
        if found is None:
            return
        # Found inside what should have been one record: bytes are missing from it, and it ends where this one begins.
        yield Gap(min(offset, found), found)
        offset = searched = found


def _search(read: ReadAt, start: int, end: int) -> int | None:
    """The offset of the next whole frame at or behind `start`."""
    base = start
    while base < end:
        block = read(base, _BLOCK)
        at = block.find(_MAGIC)
        while at >= 0:
            head = block[at : at + _HEAD.size]
            if len(head) < _HEAD.size:
                head = read(base + at, _HEAD.size)
            if len(head) == _HEAD.size and _is_head(head):
                _, _, width, count, _ = _HEAD.unpack(head)
                if base + at + _size(width, count) <= end:
                    return base + at
            at = block.find(_MAGIC, at + 1)
        if len(block) < len(_MAGIC):
            return None
        base += len(block) - len(_MAGIC) + 1  # a magic may lie across the border of two blocks
    return None


def _is_head(head: bytes) -> bool:
    return _CRC.unpack_from(head, _CHECKED)[0] == zlib.crc32(head[:_CHECKED])


def _size(width: int, count: int) -> int:
    return _HEAD.size + width * count + _DIGEST if width else _HEAD.size


def _head(name: bytes, width: int, count: int) -> bytes:
    head = _HEAD.pack(_MAGIC, name, width, count, 0)[:_CHECKED]
    return head + _CRC.pack(zlib.crc32(head))


def _digest(identity: bytes, body: bytes | memoryview) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST, key=identity).digest()
