"""Which rank forwards which rows of a step, in which micro-batch. A row is never split."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence

from align.data.layout import PACKED, PADDED, size
from align.data.tokenize import TokenizedRow

Group = list[TokenizedRow]


def share_out(
    rows: Sequence[TokenizedRow], *, world: int, tokens_per_device: int, layout: str = PADDED
) -> list[list[Group]]:
    """Deals the rows of a step to ranks: `[rank][micro-batch][row]`, the same number of micro-batches on all.

    There are as few micro-batches as `tokens_per_device` allows, of about the same number of tokens; a row with more
    has one of its own. A rank may get empty ones when there are fewer rows than places.
    """
    deal = _neighbours if layout == PADDED else _balanced
    most = max(1, math.ceil(len(rows) / world))  # a row each; more would be empty
    fewest = math.ceil(sum(_tokens(row, layout) for row in rows) / (world * tokens_per_device))
    for each in range(min(max(1, fewest), most), most + 1):
        groups = deal(rows, world * each)
        if all(len(group) <= 1 or size(group, layout) <= tokens_per_device for group in groups):
            break
    return [groups[rank::world] for rank in range(world)]


def _tokens(row: TokenizedRow, layout: str) -> int:
    """Tokens of a row, padding not counted."""
    return sum(row.lengths()) if layout == PADDED else size([row], layout)


def _neighbours(rows: Sequence[TokenizedRow], count: int) -> list[Group]:
    """`count` groups of rows of like length, with about the same number of tokens: little padding."""
    ordered = sorted(rows, key=lambda row: max(row.lengths()), reverse=True)
    groups: list[Group] = [[] for _ in range(count)]
    if count >= len(ordered):
        for index, row in enumerate(ordered):
            groups[index].append(row)
        return groups
    total, before = sum(_tokens(row, PADDED) for row in ordered), 0.0
    for row in ordered:
        tokens = _tokens(row, PADDED)
        groups[min(int((before + tokens / 2) * count / total), count - 1)].append(row)
        before += tokens
    return groups


def _balanced(rows: Sequence[TokenizedRow], count: int) -> list[Group]:
    """`count` bins of nearly as many tokens each: every row, the largest first, goes to the emptiest so far."""
    groups: list[Group] = [[] for _ in range(count)]
    filled = [(0, index) for index in range(count)]
    for row in sorted(rows, key=lambda row: _tokens(row, PACKED), reverse=True):
        tokens, index = heapq.heappop(filled)
        groups[index].append(row)
        heapq.heappush(filled, (tokens + _tokens(row, PACKED), index))
    return groups
