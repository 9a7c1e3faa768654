"""How the tokens of some rows lie in a forward pass: padded or packed.

Shapes: N responses, S tokens, G segments, M response tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from align.data.tokenize import TokenizedRow

PADDED, PACKED = "padded", "packed"

AUTO = "auto"  # of `train.recompute`: the least that the memory of `train.tokens_per_device` tokens asks for
NONE, CHEAP, ALL = "none", "cheap", "all"
# How many times as many tokens a micro-batch may have as under `none`, in the same memory. Of 30 layers with 11,100
# values a token each, 6,300 or 576 and those of a layer that is being computed again: 1.76 and 11.7.
ROOM = {NONE: 1.0, CHEAP: 1.75, ALL: 8.0}


class Tokens(NamedTuple):
    """What the model is called with, and where the predictions of response tokens are read."""

    input_ids: Tensor  # padded: (N, S); packed: (1, S)
    attention_mask: Tensor  # padded: (N, S), 0 on padding; packed: (1, 1, G, 4) segments, see `packed`
    position_ids: Tensor | None  # packed: (1, S), from 0 in every tree; padded: None, as the model counts them
    positions: Tensor  # (M,) in the flattened tokens, response by response


def arrange(rows: Sequence[TokenizedRow], pad_id: int, layout: str) -> Tokens:
    """The tokens of at least one response in a layout."""
    return padded(rows, pad_id) if layout == PADDED else packed(rows)


def size(rows: Sequence[TokenizedRow], layout: str) -> int:
    """Tokens that some rows take in a layout, padding included: what `train.tokens_per_device` bounds."""
    if layout == PADDED:
        lengths = [length for row in rows for length in row.lengths()]
        return len(lengths) * max(lengths, default=0)
    return sum(len(row.prompt_ids) + sum(len(response.ids) - 1 for response in row.responses) for row in rows)


def least_recompute(asked: str, tokens: int, tokens_per_device: int) -> str:
    """What the backward pass of a micro-batch of `tokens` computes again (see `align.scoring.recompute`)."""
    if asked != AUTO:
        return asked
    return next((mode for mode, room in ROOM.items() if tokens <= room * tokens_per_device), ALL)


def padded(rows: Sequence[TokenizedRow], pad_id: int) -> Tokens:
    """Every response behind its own copy of the prompt, padded on the right."""
    flat = [(row.prompt_ids, response.ids) for row in rows for response in row.responses]
    s = max(len(prompt_ids) + len(ids) for prompt_ids, ids in flat)
    input_ids = torch.full((len(flat), s), pad_id)
    attention_mask = torch.zeros(len(flat), s, dtype=torch.long)
    positions = []
    for index, (prompt_ids, ids) in enumerate(flat):
        end = len(prompt_ids) + len(ids)
        input_ids[index, :end] = torch.tensor([*prompt_ids, *ids])
        attention_mask[index, :end] = 1
        positions.append(torch.arange(len(prompt_ids) - 1, end - 1) + index * s)
    return Tokens(input_ids, attention_mask, None, torch.cat(positions))


def packed(rows: Sequence[TokenizedRow]) -> Tokens:
    """Trees, one behind the other: a prompt once, then its responses, each of which sees the prompt and itself.

    The last token of a response is left out: nothing is predicted from it. A segment (start, end, prefix_start,
    prefix_end) says that the tokens start..end-1 see each other causally, and all of prefix_start..prefix_end-1: the
    prompt, where the segment is a response, and nothing (an empty range) where it is a prompt.
    """
    ids: list[int] = []
    places, segments, positions = [], [], []
    for row in rows:
        prompt, first = len(ids), len(ids) + len(row.prompt_ids)
        ids += row.prompt_ids
        places.append(torch.arange(len(row.prompt_ids)))
        segments.append((prompt, first, prompt, prompt))
        for response in row.responses:
            start, length = len(ids), len(response.ids)
            ids += response.ids[:-1]
            if length > 1:
                places.append(torch.arange(length - 1) + len(row.prompt_ids))
                segments.append((start, len(ids), prompt, first))
            positions += [first - 1, *range(start, len(ids))]
    return Tokens(torch.tensor([ids]), torch.tensor([[segments]]), torch.cat(places)[None], torch.tensor(positions))
