"""A source of rows, as several sections of a recipe name it, and the section data."""

from __future__ import annotations

from dataclasses import dataclass

from align.data.layout import PACKED, PADDED
from align.schema import option


@dataclass(frozen=True, kw_only=True)
class Source:
    path: str = option(doc="builtin:NAME, a JSONL(.gz, .zst), CSV, Parquet or JSON file, a glob, or a hub id.")
    split: str = option("train", doc="Split of a builtin or hub data set.")
    weight: float = option(1.0, gt=0, doc="How often its rows are used in an epoch; 0.5 is a random half.")


@dataclass(frozen=True, kw_only=True)
class Grade:
    reward: float = option(doc="Least reward of the responses that get this prompt.")
    prompt: str = option(doc="What stands in front of the user's first message.")


@dataclass(frozen=True, kw_only=True)
class Nat:
    success: str = option("Answer this correctly.", doc="In front of prompts whose answer is a positive.")
    failure: str = option("Answer this incorrectly.", doc="In front of prompts whose answer is a negative.")
    grades: list[Grade] = option(list, doc="NAT-2: prompts by reward, instead of success and failure.")


@dataclass(frozen=True, kw_only=True)
class Mix:
    positives: float = option(gt=0, lt=1, doc="Share of a step's prompts that bring positives; the others: negatives.")
    final: float | None = option(None, gt=0, lt=1, doc="Share at the last step, approached linearly; null: the same.")


@dataclass(frozen=True, kw_only=True)
class Data:
    sources: list[Source] = option(list, doc="Where rows come from.")
    nat: Nat | None = option(None, doc="NAT: say in the prompt how good the answer is, and imitate all; null: off.")
    max_length: int = option(1024, ge=8, doc="Longest prompt plus response, in tokens; a longer response is cut.")
    layout: str = option(
        PACKED,
        choices=(PACKED, PADDED),
        doc="packed: a prompt is forwarded once for all its responses; padded: each lies behind its own copy.",
    )
    mix: Mix | None = option(None, doc="How many prompts bring positives, how many negatives; null: as rows have them.")
    streaming: str = option(
        "auto",
        choices=("auto", "always", "never"),
        doc="Whether rows are read while the run goes on; auto: where files have 256 MB, or a hub set 200,000 rows.",
    )
    shuffle_buffer: int = option(2000, ge=1, doc="Rows of a streamed source among which the next one is drawn.")
    on_bad_rows: str = option("stop", choices=("stop", "skip"), doc="What a broken row does; skipped ones are counted.")
