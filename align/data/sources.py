"""Where rows come from: builtin sets, local files with line numbers, hub ids. Counts what it drops."""

from __future__ import annotations

import functools
import glob
import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from align.data import arithmetic, readers, tables
from align.data.examples import Example, RowError, parse_row
from align.data.ledger import SHOWN, Ledger
from align.data.readers import JSON_LINES, Lines, Place, Reader
from align.errors import UserError, UserErrors, printable, shorten
from align.schema import nearest

BUILTIN = "builtin:"
ARITHMETIC = "arithmetic"
HELD_OUT = "heldout"
HOLDOUT = 0.1  # share of the prompts that a recipe without eval.sources holds out
_FOLDER = Path(__file__).parent / "builtin"
_LOCAL = (*JSON_LINES, *tables.KINDS)


def builtin_names() -> list[str]:
    return sorted([*(path.stem for path in _FOLDER.glob("*.jsonl")), "pairs", ARITHMETIC])


def check(path: str, split: str) -> tuple[str, str] | None:
    """What is wrong with a source that can be told without reading rows: (what, fix), or None."""
    if path.startswith(BUILTIN):
        name = path.removeprefix(BUILTIN)
        if name not in builtin_names():
            return f"there is no {path!r}", nearest(name, builtin_names())
        splits = _builtin_splits(name)
        if split not in splits:
            return f"{path} has no split {split!r}", f"it has {' and '.join(splits)}"
    elif is_local(path):
        return _check_files(path)
    return None


def _check_files(path: str) -> tuple[str, str] | None:
    found = files(path)
    if not found and os.path.isdir(os.path.expanduser(path)):
        return f"{shorten(path)} is a folder", f"name the files in it: {shorten(path).rstrip('/')}/*.jsonl, for example"
    if not found:
        return f"{shorten(path)}: no such file", "give an existing file, a glob, a hub id or builtin:unwanted"
    strange = next((file for file in found if not file.name.endswith(_LOCAL)), None)
    if strange is not None:
        return f"{shorten(str(strange))} is of no kind that can be read", f"give {', '.join(_LOCAL)}"
    return None


def default_split(path: str) -> str:
    """What is read of a source where nobody says: its training part, or what a builtin set has."""
    name = path.removeprefix(BUILTIN)
    splits = _builtin_splits(name) if path.startswith(BUILTIN) and name in builtin_names() else ["train"]
    return splits[0]


def is_local(path: str) -> bool:
    """Whether a source names local files; otherwise it is a builtin set or a hub id (`owner/name`)."""
    if path.startswith(BUILTIN):
        return False
    looks_local = path.endswith(_LOCAL) or any(c in path for c in "*?[") or path.startswith((".", "/", "~"))
    return looks_local or os.path.exists(path) or path.count("/") != 1


def files(path: str) -> list[Path]:
    expanded = os.path.expanduser(path)
    if os.path.isfile(expanded):  # its name may look like a glob
        return [Path(expanded)]
    return [Path(name) for name in sorted(glob.glob(expanded, recursive=True)) if Path(name).is_file()]


def read(path: str, split: str, *, on_bad_rows: str, ledger: Ledger, most: int | None = None) -> list[Example]:
    """All rows of one source (the first `most`) as records.

    Broken rows stop with UserErrors (the first ten places), or are counted and left out with
    `on_bad_rows="skip"`, as is what stands behind the damage in a file. Raises UserError for an empty source.
    """
    examples, errors = [], []
    skip_damage = functools.partial(drop_damaged, ledger=ledger) if on_bad_rows == "skip" else None
    for place, row in itertools.islice(rows(path, split, on_damage=skip_damage), most):
        try:
            examples.append(record(path, str(place), row, ledger))
        except RowError as error:
            if on_bad_rows == "skip":
                drop_broken(place, error, ledger)
            else:
                errors.append(UserError(str(place), shorten(str(error), 200)))
    if errors:
        count = "1 broken row" if len(errors) == 1 else f"{len(errors)} broken rows"
        shown = f", the first {SHOWN} shown" if len(errors) > SHOWN else ""
        mend = f"mend {'it' if len(errors) == 1 else 'them'}, or {SKIP}"
        raise UserErrors(errors[:SHOWN], f"{count}{shown}; {mend}")
    if not examples:
        raise UserError(path, "holds no usable row", "a row is an object with a prompt and responses")
    return examples


SKIP = "use the good rows with data.on_bad_rows: skip"


def record(path: str, place: object, row: object, ledger: Ledger) -> Example:
    """The record of a row that was read. Raises RowError."""
    ledger.read += 1
    if isinstance(row, RowError):
        raise row
    return parse_row(row, source=path, place=place)


def drop_broken(place: object, error: RowError, ledger: Ledger) -> None:
    ledger.drop("broken", place, printable(str(error)))


def drop_damaged(error: UserError, ledger: Ledger) -> None:
    ledger.drop("file unreadable from here on", error.where, error.what)


def is_held_out(example: Example, share: float) -> bool:
    """Whether a prompt is for measuring: it is in every run and file, whatever the order of rows.

    Rows without a prompt would all be on one side; there the answers decide.
    """
    alone = "".join(response.said for response in example.responses) if example.prompt == "" else ""
    digest = hashlib.sha256(b"holdout" + (example.key + alone).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def split_holdout(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(train, held out)"""
    train = [example for example in examples if not is_held_out(example, share)]
    return train, [example for example in examples if is_held_out(example, share)]


def rows(
    path: str, split: str, *, only_lines: bool = False, on_damage: Callable[[UserError], None] | None = None
) -> Iterator[tuple[object, object]]:
    """(place, row) of a source, in its order; a line that is no JSON comes as a RowError.

    With `only_lines` raises NotImplementedError where the slow `datasets` library would have to read. A file that
    cannot be read to its end is told to `on_damage`, and the next one follows; without that UserError is raised.
    """
    if path.startswith(BUILTIN):
        yield from _builtin_rows(path.removeprefix(BUILTIN), split)
    elif is_local(path):
        for file in files(path):
            if file.name.endswith(JSON_LINES):
                yield from _past_damage(Lines([readers.Piece(str(file), 0, None)]), on_damage)
            elif only_lines:
                raise NotImplementedError(file.suffix)
            else:
                yield from _past_damage(tables.Table([tables.file_shard(file)]), on_damage)
    else:
        for part in tables.hub_parts(path, split, 1):
            yield from _past_damage(part(None), on_damage)


def _past_damage(reader: Reader, on_damage: Callable[[UserError], None] | None) -> Iterator[tuple[object, object]]:
    try:
        yield from reader.rows()
    except UserError as error:
        if on_damage is None:
            raise
        on_damage(error)


def parts(path: str, split: str, count: int) -> list[Callable[[list | None], Reader]]:
    """What opens each part of a source, from a position on; about `count` parts, the same whoever asks."""
    if path.startswith(BUILTIN):
        return [functools.partial(readers.Listed, list(_builtin_rows(path.removeprefix(BUILTIN), split)))]
    if not is_local(path):
        return tables.hub_parts(path, split, count)
    lines, others = _by_kind(path)
    found = [functools.partial(Lines, pieces) for pieces in readers.cut(lines, count) if pieces] if lines else []
    return found + tables.file_parts(others, count)


def size(path: str, split: str) -> float | None:
    """How many rows a source has: exactly or about (see `readers.rows_in`); None where nothing tells."""
    if path.startswith(BUILTIN):
        return float(len(list(_builtin_rows(path.removeprefix(BUILTIN), split))))
    if not is_local(path):
        return tables.hub_rows(path, split)
    lines, others = _by_kind(path)
    counts = [tables.rows_in(file) for file in others]
    return None if None in counts else readers.rows_in(lines) + sum(counts)


def _by_kind(path: str) -> tuple[list[Path], list[Path]]:
    """(files of lines, tables) of a local source."""
    named = files(path)
    lines = [file for file in named if file.name.endswith(JSON_LINES)]
    return lines, [file for file in named if file not in lines]


def sizes(path: str) -> dict[str, int]:
    """Bytes of each local file of a source."""
    return {str(file): file.stat().st_size for file in files(path)} if is_local(path) else {}


def _builtin_rows(name: str, split: str) -> Iterator[tuple[Place, object]]:
    """Rows of a set that ships with the project, in its own columns (see builtin/README.md).

    `unwanted` trains on negatives alone; its good answers appear in the held-out part only. `pairs` is the same
    set with the good answers as positives in both parts. `benign` is never trained on, `retain` never measured on.
    """
    if name == ARITHMETIC:
        yield from ((Place(f"{BUILTIN}{name}", 0, number), row) for number, row in enumerate(arithmetic.rows(split), 1))
        return
    for number, row in _builtin_file(name):
        if row["split"] == split:
            with_good = name != "unwanted" or split == HELD_OUT
            texts = [(row["good"], "positive", 1.0)] if with_good else []
            texts += [(text, "negative", -1.0) for text in row.get("negatives", [])]
            record = {
                "prompt": [{"role": "user", "content": row["prompt"]}],
                "responses": [{"text": text, "role": role, "reward": reward} for text, role, reward in texts],
                "source": row["kind"],
            }
            yield Place(f"{BUILTIN}{name}", 0, number), record


def _builtin_splits(name: str) -> list[str]:
    found = list(arithmetic.PARTS) if name == ARITHMETIC else {row["split"] for _, row in _builtin_file(name)}
    return sorted(found, key=lambda split: (split != "train", split))  # train first


def _builtin_file(name: str) -> list[tuple[int, dict]]:
    """(line, row) of the file behind a builtin name."""
    file = _FOLDER / f"{'unwanted' if name == 'pairs' else name}.jsonl"
    with open(file, encoding="utf-8") as lines:
        return [(number, json.loads(line)) for number, line in enumerate(lines, 1)]
