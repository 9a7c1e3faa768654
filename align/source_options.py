"""A source of rows, as several sections of a recipe name it."""

from __future__ import annotations

from dataclasses import dataclass

from align.schema import option


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str = option(doc="builtin:NAME, a JSONL(.gz, .zst), CSV, Parquet or JSON file, a glob, or a hub id.")
    split: str = option("train", doc="Split of a builtin or hub data set.")
    weight: float = option(1.0, gt=0, doc="How often its rows are used in an epoch; 0.5 is a random half.")
