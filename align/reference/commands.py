"""What `align ref stat | verify | export | import` do with a store on disk; no model is needed."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from align.errors import UserError, printable, shorten
from align.reference import records
from align.reference.store import Store, read_at

_AT_ONCE = 1000  # records written at once by an import


@dataclass(frozen=True)
class Entry:
    """A record that is what was written, or (`problem`) a place where none can be read."""

    offset: int
    identity: str = ""
    key: bytes = b""
    frame: bytes = b""
    values: np.ndarray | None = None
    problem: str = ""


def entries(path: Path, identity: str | None = None) -> Iterator[Entry]:
    """All records of a part or an exported file, each one read and checked.

    `identity`: whose records the file may hold, where that is known; labels in the file say so otherwise.
    """
    size, whose, end = path.stat().st_size, identity and bytes.fromhex(identity), 0
    with open(path, "rb", buffering=0) as file:
        for found in records.walk(functools.partial(read_at, file), 0, size):
            if isinstance(found, records.Gap):
                yield Entry(found.offset, problem=f"{found.end - found.offset} bytes are no record")
                continue
            end = found.offset + found.size
            if found.is_label:
                whose = found.name if found.count == records.VERSION else None
                if whose is None:
                    yield Entry(found.offset, problem=f"format {found.count} of another version of this program")
                elif identity not in (None, whose.hex()):
                    yield Entry(found.offset, problem="records of another reference")
                continue
            frame = read_at(file, found.offset, found.size)
            values = records.values_of(whose, found.name, frame) if whose else None
            if values is None:
                yield Entry(found.offset, problem="the checksum is wrong")
            elif identity in (None, whose.hex()):
                yield Entry(found.offset, whose.hex(), found.name, frame, values)
    if end < size:
        yield Entry(
            end, problem=f"the last {size - end} bytes are no whole record (a writer was killed, or is at work)"
        )


def references(folder: Path) -> dict[str, list[Path]]:
    """identity -> part files of a store. Raises UserError if there is no such folder."""
    if not folder.is_dir():
        raise UserError("align ref", f"{shorten(str(folder))}: no such folder", "name the folder of a reference store")
    return {
        found.name: sorted(found.glob("part-*"))
        for found in sorted(folder.iterdir())
        if found.is_dir() and len(found.name) == 64 and not set(found.name) - set("0123456789abcdef")
    }


def stat(folder: Path) -> None:
    """Prints, for each reference, how many log-probs of how many tokens take how much space."""
    found = references(folder)
    print(f"{printable(str(folder))}: {len(found)} references")
    for identity, parts in found.items():
        tokens: dict[bytes, int] = {}  # of each key
        for part in parts:
            with open(part, "rb", buffering=0) as file:
                heads = records.walk(functools.partial(read_at, file), 0, part.stat().st_size)
                tokens |= {h.name: h.count for h in heads if isinstance(h, records.Frame) and not h.is_label}
        size = sum(part.stat().st_size for part in parts)
        numbers = f"{len(tokens):,} entries, {sum(tokens.values()):,} tokens, {_bytes(size)} in {len(parts)} parts"
        print(f"  {identity[:16]}  {numbers}")


def verify(folder: Path) -> bool:
    """Reads every record and prints what is damaged; whether nothing is."""
    whole = damaged = 0
    for identity, parts in references(folder).items():
        for part in parts:
            for entry in entries(part, identity):
                whole += not entry.problem
                damaged += bool(entry.problem)
                if entry.problem:
                    print(printable(f"{part}: byte {entry.offset}: {entry.problem}"))
    print(
        f"{whole:,} entries are whole, {damaged:,} places are damaged" + (" (scored again when needed)" * bool(damaged))
    )
    return not damaged


def export(folder: Path, out: Path) -> None:
    """Writes all whole records of a store, each once, to one file; it appears under its name when complete."""
    if out.exists():
        raise UserError("align ref export", f"{shorten(str(out))} exists already", "name a new file")
    temporary, count = out.with_name(f".{out.name}.{os.getpid()}"), 0
    found = references(folder)
    try:
        with open(temporary, "xb") as file:
            for identity, parts in found.items():
                file.write(records.label(bytes.fromhex(identity)))
                seen = set()
                for entry in (entry for part in parts for entry in entries(part, identity)):
                    if not entry.problem and (entry.key, entry.values.itemsize) not in seen:
                        seen.add((entry.key, entry.values.itemsize))
                        file.write(entry.frame)
                count += len(seen)
        os.replace(temporary, out)
    except OSError as error:
        raise UserError("align ref export", f"{shorten(str(out))}: {shorten(error)}", "name another place") from None
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{count:,} entries of {len(found)} references in {printable(str(out))}, {_bytes(out.stat().st_size)}")


def import_(file: Path, folder: Path) -> bool:
    """Adds the records of an exported file that a store lacks; whether all of the file was whole."""
    if not file.is_file():
        raise UserError("align ref import", f"{shorten(str(file))}: no such file", "name a file of align ref export")
    stores: dict[tuple[str, str], Store] = {}
    waiting: dict[tuple[str, str], dict[bytes, np.ndarray]] = {}
    added = known = damaged = 0
    for entry in entries(file):
        if entry.problem:
            damaged += 1
            print(printable(f"{file}: byte {entry.offset}: {entry.problem}"))
            continue
        which = entry.identity, entry.values.dtype.name
        if which not in stores:
            stores[which], waiting[which] = Store(folder, which[0], dtype=which[1]), {}
        if entry.key in stores[which] or entry.key in waiting[which]:
            known += 1
            continue
        waiting[which][entry.key] = entry.values
        added += 1
        if len(waiting[which]) >= _AT_ONCE:
            _write(stores[which], waiting[which])
    for which, store in stores.items():
        _write(store, waiting[which])
    print(f"{added:,} entries added, {known:,} were there, {damaged:,} places were damaged")
    return not damaged


def _write(store: Store, items: dict[bytes, np.ndarray]) -> None:
    store.put(items)
    if store.problem:
        raise UserError("align ref import", f"{shorten(str(store.folder))}: {store.problem}", "name another folder")
    items.clear()


def _bytes(size: int) -> str:
    unit = min(max(len(str(size)) - 1, 0) // 3, 4)
    return f"{size / 1000**unit:.{min(unit, 1)}f} {('B', 'kB', 'MB', 'GB', 'TB')[unit]}"
