"""Log-probs of whole answers under several heads at once: models, or the adapters of one model.

The heads of one model share its passes: a prompt with its answers lies in a micro-batch once for each head, and each
is computed by its own adapter (`align.scoring.routing`). Within a head a prompt is forwarded once for all its answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from align.data.collate import collate
from align.data.layout import PACKED, PADDED
from align.data.share import share_out
from align.data.tokenize import TokenizedRow
from align.scoring import support
from align.scoring.head import causal_lm
from align.scoring.logprobs import response_logps


class Head(NamedTuple):
    """Who scores: a model, and the role whose adapter computes (of a model without adapters by role, any)."""

    model: nn.Module
    role: int


def layout_for(model: nn.Module, max_length: int) -> str:
    """packed, and the model made ready for it, or padded where it cannot be."""
    return PADDED if support.use_packed(model, max_length) else PACKED


@torch.no_grad()
def answer_logps(
    heads: Mapping[str, tuple[Head, Sequence[TokenizedRow]]], *, layout: str, tokens_at_once: int, in_bf16: bool
) -> dict[str, list[Tensor]]:
    """name -> for each of its rows (K,) the log-prob in nats of each of its K answers, end of turn included.

    `heads` maps a name to who scores and to what; the models are in evaluation mode. How many tokens pass a model at
    once has no say in the result, but for rounding.
    """
    found: dict[str, dict[int, Tensor]] = {name: {} for name in heads}
    for model in {id(head.model): head.model for head, _ in heads.values()}.values():
        places, rows = {}, []
        for name, (head, own) in heads.items():
            if head.model is model:
                for index, row in enumerate(own):
                    rows.append(under(row, head.role))
                    places[id(rows[-1])] = name, index
        device = causal_lm(model).get_input_embeddings().weight.device
        (groups,) = share_out(rows, world=1, tokens_per_device=tokens_at_once, layout=layout)
        for group in (group for group in groups if group):
            batch = collate(group, 0, layout).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                sums = response_logps(model, batch).sum(-1).cpu()  # (N,)
            for row, own in zip(group, sums.split([len(row.responses) for row in group]), strict=True):
                name, index = places[id(row)]
                found[name][index] = own
    return {name: [own[index] for index in range(len(own))] for name, own in found.items()}


def under(row: TokenizedRow, role: int) -> TokenizedRow:
    """The row with all its answers as answers of a role, whatever they are."""
    return dataclasses.replace(row, responses=tuple(dataclasses.replace(one, role=role) for one in row.responses))
