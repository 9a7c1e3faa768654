"""What goes through the model: tokens, micro-batches and steps, counted on the recipe's own rows."""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align.data.layout import PACKED, PADDED, size
from align.data.plan import PlannedFeed
from align.data.share import Group
from align.data.steps import Steps
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.objectives import NEGATIVE, POSITIVE, SAMPLE

if TYPE_CHECKING:
    from align.negatives.options import Sampling

LOOKED_AT = 64  # optimiser steps, evenly spread over the run; the first ones of rows that are streamed


@dataclass(frozen=True)
class Dealt:
    """A micro-batch of one rank, not yet collated."""

    rows: tuple[TokenizedRow, ...]
    tokens: int  # as they lie in the layout
    recompute: str


@dataclass
class Volume:
    """Sums over the steps that were looked at, over all ranks; `a_step` divides."""

    steps: int  # of the whole run
    ranks: int
    looked_at: int = 0
    sums: Counter[str] = field(default_factory=Counter)
    tokens_by_recompute: Counter[str] = field(default_factory=Counter)
    micro_batches: list[Dealt] = field(default_factory=list)  # without the empty ones
    most_micro_batches: int = 0  # of a rank in a step

    def a_step(self, name: str) -> float:
        """Mean over the steps that were looked at, all ranks together."""
        return self.sums[name] / self.looked_at

    def heaviest(self) -> list[Dealt]:
        """The largest micro-batch of each kind of recomputation."""
        found = defaultdict(list)
        for one in self.micro_batches:
            found[one.recompute].append(one)
        return [max(group, key=lambda one: (one.tokens, _response_tokens(one.rows))) for group in found.values()]


def count(steps: Steps) -> Volume:
    """Counts the steps of a run, or enough of them."""
    total, in_memory = len(steps), isinstance(steps.feed, PlannedFeed)
    looked_at = min(total, LOOKED_AT)
    chosen = [index * total // looked_at if in_memory else index for index in range(looked_at)]
    volume = Volume(total, steps.world, looked_at)
    for step in chosen:
        rows, mismatched = steps.rows(step)
        volume.sums["mismatched tokens"] += size(mismatched, PACKED) if mismatched else 0
        dealt = list(steps.deal(rows))
        volume.sums["micro-batches"] += len(dealt)
        volume.most_micro_batches = max(volume.most_micro_batches, len(dealt))
        for beside, recompute in dealt:
            for group in filter(None, beside):
                _add(volume, group, Dealt(tuple(group), size(group, steps.layout), recompute))
    return volume


def _add(volume: Volume, group: Group, dealt: Dealt) -> None:
    volume.micro_batches.append(dealt)
    volume.tokens_by_recompute[dealt.recompute] += dealt.tokens
    retain = sum(row.retain for row in group)
    volume.sums.update({
        "prompts": len(group) - retain, "retain prompts": retain,
        "responses": sum(len(row.responses) for row in group), "response tokens": _response_tokens(group),
        "tokens": dealt.tokens, "unique tokens": size(group, PACKED), "tokens padded": size(group, PADDED),
        "tokens with a prompt for each response": sum(sum(row.lengths()) for row in group),
        "tokens in pairs": sum(map(_in_pairs, group)),
    })  # fmt: skip


def _response_tokens(rows: tuple[TokenizedRow, ...] | Group) -> int:
    return sum(len(response.ids) for row in rows for response in row.responses)


def _in_pairs(row: TokenizedRow) -> int:
    """Tokens if each positive stood against each negative, both behind a prompt of their own; 0 without pairs."""
    lengths = [(response.role, length) for response, length in zip(row.responses, row.lengths(), strict=True)]
    good, bad = ([length for role, length in lengths if role == wanted] for wanted in (POSITIVE, NEGATIVE))
    return len(bad) * sum(good) + len(good) * sum(bad)


class AssumedSamples:
    """Stands where the sampler does: samples are yet to be drawn, so each is taken to be as long as it may be."""

    def __init__(self, config: Sampling, max_length: int):
        self.config, self.max_length = config, max_length

    def with_samples(self, row: TokenizedRow) -> TokenizedRow:
        room = max(1, min(self.config.max_new_tokens, self.max_length - len(row.prompt_ids)))
        sample = TokenizedResponse((row.prompt_ids[-1],) * room, SAMPLE)
        return dataclasses.replace(row, responses=(*row.responses, *[sample] * self.config.k))
