"""Where rows come from: builtin sets, local files with line numbers, hub ids. Counts what it drops."""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from align.data.examples import Example, RowError, parse_row
from align.errors import UserError, UserErrors, printable, shorten
from align.schema import nearest

BUILTIN = "builtin:"
HELD_OUT = "heldout"
_FOLDER = Path(__file__).parent / "builtin"
_JSON_LINES = (".jsonl", ".jsonl.gz", ".jsonl.zst")
_LOCAL = (*_JSON_LINES, ".csv", ".parquet", ".json")
_SHOWN = 10  # how many broken rows an error lists


@dataclass
class Ledger:
    """What became of the rows: the contents of `data.json`. Nothing is dropped without an entry here."""

    read: int = 0
    used: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> rows or responses
    places: dict[str, list[str]] = field(default_factory=dict)  # reason -> first places

    def drop(self, reason: str, place: str) -> None:
        self.dropped[reason] += 1
        self.places.setdefault(reason, [])
        if len(self.places[reason]) < _SHOWN:
            self.places[reason].append(place)

    def merge(self, other: Ledger, prefix: str) -> None:
        """Takes over what `other` dropped, its reasons behind `prefix`; the rows it read are not counted as ours."""
        for reason, count in other.dropped.items():
            self.dropped[prefix + reason] += count
            places = self.places.setdefault(prefix + reason, [])
            places += other.places[reason][: _SHOWN - len(places)]

    def as_dict(self) -> dict:
        reasons = {key: {"count": count, "first": self.places[key]} for key, count in sorted(self.dropped.items())}
        return {"rows_read": self.read, "rows_used": self.used, "dropped": reasons}


def builtin_names() -> list[str]:
    return sorted([*(path.stem for path in _FOLDER.glob("*.jsonl")), "pairs"])


def check(path: str, split: str) -> tuple[str, str] | None:
    """What is wrong with a source that can be told without reading rows: (what, fix), or None."""
    if path.startswith(BUILTIN):
        name = path.removeprefix(BUILTIN)
        if name not in builtin_names():
            return f"there is no {path!r}", nearest(name, builtin_names())
        splits = sorted({row["split"] for _, row in _builtin_file(name)}, reverse=True)  # train first
        if split not in splits:
            return f"{path} has no split {split!r}", f"it has {' and '.join(splits)}"
    elif is_local(path) and not _files(path):
        return f"{shorten(path)}: no such file", "give an existing file, a glob, a hub id or builtin:unwanted"
    return None


def is_local(path: str) -> bool:
    """Whether a source names local files; otherwise it is a builtin set or a hub id (`owner/name`)."""
    if path.startswith(BUILTIN):
        return False
    looks_local = path.endswith(_LOCAL) or any(c in path for c in "*?[") or path.startswith((".", "/", "~"))
    return looks_local or os.path.exists(path) or path.count("/") != 1


def _files(path: str) -> list[Path]:
    expanded = os.path.expanduser(path)
    if os.path.isfile(expanded):  # its name may look like a glob
        return [Path(expanded)]
    return [Path(name) for name in sorted(glob.glob(expanded, recursive=True)) if Path(name).is_file()]


def read(path: str, split: str, *, on_bad_rows: str, ledger: Ledger) -> list[Example]:
    """All rows of one source as records.

    Broken rows stop with UserErrors (the first ten places), or are counted and left out with
    `on_bad_rows="skip"`. Raises UserError for an empty source.
    """
    examples, errors = [], []
    for place, row in rows(path, split):
        ledger.read += 1
        try:
            if isinstance(row, RowError):
                raise row
            examples.append(parse_row(row, source=path, place=place))
        except RowError as error:
            if on_bad_rows == "skip":
                ledger.drop("broken", f"{place}: {printable(str(error))}")
            else:
                errors.append(UserError(place, shorten(str(error), 200)))
    if errors:
        count = "1 broken row" if len(errors) == 1 else f"{len(errors)} broken rows"
        shown = f", the first {_SHOWN} shown" if len(errors) > _SHOWN else ""
        mend = f"mend {'it' if len(errors) == 1 else 'them'}, or use the good rows with data.on_bad_rows: skip"
        raise UserErrors(errors[:_SHOWN], f"{count}{shown}; {mend}")
    if not examples:
        raise UserError(path, "holds no usable row", "a row is an object with a prompt and responses")
    return examples


def split_holdout(examples: list[Example], share: float) -> tuple[list[Example], list[Example]]:
    """(train, held out): a prompt is on the same side in every run and file, whatever the order of rows."""

    def held_out(example: Example) -> bool:
        digest = hashlib.sha256(b"holdout" + example.key.encode()).digest()
        return int.from_bytes(digest[:8], "big") < share * 2**64

    train = [example for example in examples if not held_out(example)]
    return train, [example for example in examples if held_out(example)]


def rows(path: str, split: str, *, tables: bool = True) -> Iterator[tuple[str, object]]:
    """(place, row) of a source; a line that is no JSON comes as a RowError.

    Without `tables` raises NotImplementedError where the slow `datasets` library would have to read.
    """
    if path.startswith(BUILTIN):
        yield from _builtin_rows(path.removeprefix(BUILTIN), split)
    elif is_local(path):
        for file in _files(path):
            if not tables and not file.name.endswith(_JSON_LINES):
                raise NotImplementedError(file.suffix)
            yield from _json_lines(file) if file.name.endswith(_JSON_LINES) else _loaded(str(file), split)
    else:
        yield from _loaded(path, split)


def _json_lines(file: Path) -> Iterator[tuple[str, object]]:
    opener, errors = _opener(file)
    try:
        with opener(file, "rb") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{file}:{number}", _json(line)
    except errors as error:
        raise UserError(str(file), f"cannot be read to its end: {shorten(error)}", "copy the file again") from None


def _opener(file: Path) -> tuple[Callable, tuple[type[Exception], ...]]:
    """What opens a file of lines, and the errors of a damaged one."""
    if file.suffix == ".gz":
        return gzip.open, (OSError, EOFError, zlib.error)
    if file.suffix != ".zst":
        return open, (OSError,)
    try:
        from compression import zstd  # Python 3.14
    except ImportError:
        raise UserError(str(file), "this Python cannot read .zst", "unpack it with `zstd -d`") from None
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


def _loaded(path: str, split: str) -> Iterator[tuple[str, object]]:
    """CSV, Parquet, JSON and hub data sets, read by the `datasets` library."""
    import datasets

    kind = {".csv": "csv", ".parquet": "parquet", ".json": "json"}.get(Path(path).suffix)
    try:
        if kind:
            rows = datasets.load_dataset(kind, data_files=path, split="train", streaming=True)
        else:
            rows = datasets.load_dataset(path, split=split, streaming=True)
        for number, row in enumerate(rows, 1):
            yield f"{path}:row {number}", row
    except Exception as error:  # the library raises anything from OSError to its own classes
        fix = "check the name, the split and the network" if not kind else "check the file"
        raise UserError(path, f"cannot be read: {type(error).__name__}: {shorten(error, 120)}", fix) from None


def _builtin_rows(name: str, split: str) -> Iterator[tuple[str, object]]:
    """Rows of a set that ships with the project, in its own columns (see builtin/README.md).

    `unwanted` trains on negatives alone; its good answers appear in the held-out part only. `pairs` is the same
    set with the good answers as positives in both parts. `benign` is never trained on, `retain` never measured on.
    """
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
            yield f"{BUILTIN}{name}:{number}", record


def _builtin_file(name: str) -> list[tuple[int, dict]]:
    """(line, row) of the file behind a builtin name."""
    file = _FOLDER / f"{'unwanted' if name == 'pairs' else name}.jsonl"
    with open(file, encoding="utf-8") as lines:
        return [(number, json.loads(line)) for number, line in enumerate(lines, 1)]
