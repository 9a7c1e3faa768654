"""Tables (CSV, Parquet, JSON) and hub data sets, as the `datasets` library streams them; see `readers.py` for lines."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from align.data import readers
from align.data.readers import Place
from align.errors import UserError, shorten

KINDS = {".csv": "csv", ".parquet": "parquet", ".json": "json"}


class Shard(NamedTuple):
    """What is read in one go: a file, or a share of a hub data set."""

    name: str  # for messages
    unit: str  # what its rows are called there
    open: Callable  # gives an iterable data set


class Table:
    """Rows of shards, in their order. `position` is [shard, rows of it read, state of its data set or None]."""

    def __init__(self, shards: Sequence[Shard], position: list | None = None):
        self.shards = shards
        self.shard, self.number, self._state = position or (0, 0, None)
        self._dataset = None

    @property
    def position(self) -> list:
        return [self.shard, self.number, self._state if self._dataset is None else self._dataset.state_dict()]

    def rows(self) -> Iterator[tuple[Place, object]]:
        while self.shard < len(self.shards):
            shard = self.shards[self.shard]
            self._dataset = shard.open()
            if self._state is not None:
                self._dataset.load_state_dict(self._state)
            try:
                for row in self._dataset:
                    self.number += 1
                    yield Place(shard.name, 0, self.number, shard.unit), row
            except Exception as error:  # the library raises anything from OSError to its own classes
                raise _unreadable(shard.name, error) from None
            self.next_piece()

    def next_piece(self) -> None:
        """Goes on with the next shard, as behind one that cannot be read further."""
        self.shard, self.number, self._state, self._dataset = self.shard + 1, 0, None, None


def file_shard(file: Path) -> Shard:
    return Shard(str(file), "row ", functools.partial(_open, KINDS[file.suffix], data_files=[str(file)], split="train"))


def file_parts(files: Sequence[Path], count: int) -> list[Callable[[list | None], Table]]:
    """What opens each part of some files: they are dealt whole."""
    return [functools.partial(Table, [file_shard(file) for file in part]) for part in readers.dealt(files, count)]


def rows_in(file: Path) -> float | None:
    """How many rows a table has; None where that takes reading it."""
    try:
        if file.suffix == ".parquet":
            from pyarrow import parquet

            return float(parquet.read_metadata(file).num_rows)
        return readers.rows_in([file]) - 1 if file.suffix == ".csv" else None  # a header
    except Exception as error:  # see Table
        raise _unreadable(str(file), error) from None


def hub_parts(path: str, split: str, count: int) -> list[Callable[[list | None], Table]]:
    """What opens each part of a hub data set: as many as it has shards, at most `count`."""
    total = min(count, max(1, open_hub(path, split).num_shards))

    def shard(index: int):
        return open_hub(path, split).shard(total, index)

    units = [f"part {index + 1} of {total}, row " if total > 1 else "row " for index in range(total)]
    return [
        functools.partial(Table, [Shard(path, unit, functools.partial(shard, index))])
        for index, unit in enumerate(units)
    ]


def open_hub(path: str, split: str):
    """The iterable data set of a hub id. Raises UserError."""
    return _open(path, split=split)


def hub_rows(path: str, split: str) -> float | None:
    """How many rows a hub data set says that it has."""
    splits = open_hub(path, split).info.splits or {}
    return float(splits[split].num_examples) if split in splits and splits[split].num_examples else None


def _open(path: str, **options):
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # an error is raised, too, and told once
    try:
        return datasets.load_dataset(path, streaming=True, **options)
    except Exception as error:  # see Table
        raise _unreadable(options.get("data_files", [path])[0], error) from None


def _unreadable(path: str, error: Exception) -> UserError:
    fix = "check the file" if Path(path).suffix in KINDS else "check the name, the split and the network"
    return UserError(path, f"cannot be read: {type(error).__name__}: {shorten(error, 120)}", fix)
