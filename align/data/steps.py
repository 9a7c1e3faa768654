"""Which micro-batches make up each optimiser step on this rank: the training data set, one item a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from torch.utils.data import Dataset

from align.data.collate import MicroBatch, collate
from align.data.layout import least_recompute, size
from align.data.ledger import Ledger
from align.data.share import Group, share_out
from align.data.tokenize import TokenizedResponse, TokenizedRow

if TYPE_CHECKING:
    from align.negatives.sampling import Sampler


class StepShare(NamedTuple):  # transformers looks whether "labels" is in it, so it must be iterable
    """What a rank forwards in one optimiser step; every rank has the same number of micro-batches of each kind."""

    number: int  # of the step, from 0
    batches: list[MicroBatch]
    mismatched: list[MicroBatch]  # responses behind the prompt of another row: for KTO's KL, not learned from


class Feed(Protocol):
    """The rows of each optimiser step over all ranks, in memory (`plan`) or read as the run goes on (`stream`)."""

    def __len__(self) -> int: ...  # steps

    def rows(self, step: int) -> list[TokenizedRow]: ...

    def between(self, first: int, last: int) -> list[TokenizedRow]: ...  # of several steps that are still to come

    def everything(self, ledger: Ledger) -> Ledger: ...  # and what was counted while reading

    def epochs(self) -> dict[str, float]: ...  # of each source or group

    def state(self) -> dict: ...  # for a checkpoint, in JSON's types; all ranks must ask

    def restore(self, state: dict, step: int, is_first_rank: bool) -> None: ...  # raises UserError for other rows


class Steps(Dataset):
    """Item s: this rank's share of optimiser step s."""

    def __init__(
        self,
        feed: Feed,
        sampler: Sampler | None,
        *,
        retain: Feed | None,
        wants_mismatched: bool,
        splits_roles: bool,
        rank: int,
        world: int,
        max_length: int,
        tokens_per_device: int,
        pad_id: int,
        layout: str,
        recompute: str,
    ):
        self.feed, self.sampler, self.retain = feed, sampler, retain
        self.wants_mismatched, self.splits_roles, self.max_length = wants_mismatched, splits_roles, max_length
        self.rank, self.world, self.tokens_per_device = rank, world, tokens_per_device
        self.pad_id, self.layout, self.recompute = pad_id, layout, recompute

    def __len__(self) -> int:
        return len(self.feed)

    def __getitem__(self, step: int) -> StepShare:
        rows, mismatched = self.rows(step)
        return StepShare(step, self._collated(rows), self._collated(mismatched) if self.wants_mismatched else [])

    def rows(self, step: int) -> tuple[list[TokenizedRow], list[TokenizedRow]]:
        """What all ranks together forward in a step, and of responses behind the prompt of another row."""
        rows = self.feed.rows(step)
        if self.sampler is not None:
            rows = [row for row in map(self.sampler.with_samples, rows) if row is not None]
        mismatched = mismatch(rows, self.max_length) if self.wants_mismatched else []
        if self.retain is not None:
            rows = [*rows, *self.retain.rows(step)]
        if self.splits_roles:
            rows = [part for row in rows for part in by_role(row)]
        return rows, mismatched

    def deal(self, rows: list[TokenizedRow]) -> Iterator[tuple[tuple[Group, ...], str]]:
        """What the ranks forward at the same time, one group each, and what is computed again of it; time by time."""
        shares = share_out(rows, world=self.world, tokens_per_device=self.tokens_per_device, layout=self.layout)
        for beside in zip(*shares, strict=True):
            most = max(size(group, self.layout) for group in beside)
            yield beside, least_recompute(self.recompute, most, self.tokens_per_device)

    def collate(self, group: Group, recompute: str) -> MicroBatch:
        return dataclasses.replace(collate(group, self.pad_id, self.layout), recompute=recompute)

    def _collated(self, rows: list[TokenizedRow]) -> list[MicroBatch]:
        return [self.collate(beside[self.rank], recompute) for beside, recompute in self.deal(rows)]


def by_role(row: TokenizedRow) -> list[TokenizedRow]:
    """The row once for each role of its responses: what an adapter computes of a prompt is no use to another."""
    roles = dict.fromkeys(response.role for response in row.responses)
    return [
        dataclasses.replace(row, responses=tuple(one for one in row.responses if one.role == role)) for role in roles
    ]


def mismatch(rows: list[TokenizedRow], max_length: int) -> list[TokenizedRow]:
    """Each response of the rows behind the next other prompt of the step, cut to `max_length`; [] for one prompt.

    One row a response: behind a longer prompt all of a row together might not fit a device.
    """
    found = []
    for index, row in enumerate(rows):
        others = (other for other in rows[index + 1 :] + rows[:index] if other.prompt_ids != row.prompt_ids)
        prompt_ids = next((other.prompt_ids for other in others), None)
        if prompt_ids is None:
            continue
        room = max_length - len(prompt_ids)
        for response in row.responses:
            moved = TokenizedResponse(response.ids[:room], response.role)
            found.append(TokenizedRow(prompt_ids, (moved,), row.example))
    return found
