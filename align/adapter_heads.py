"""LoRA that is confined to single attention heads: `model.adapter.heads: [L12H3, L20H0]`, layers and heads from 0.

Of such a head what is its own is trained, with matrices of the layer's query and output projections: the rows of the
query that only it reads, and the columns of the output that only it writes to. Keys and values are left alone: under
grouped queries several heads share them. What other heads have in these matrices is 0 from the start and gets no
gradient, so the saved adapter is an ordinary one, which any PEFT loads.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from align.errors import UserError, shorten

QUERY, OUTPUT = "q_proj", "o_proj"
_NAME = re.compile(r"L(\d{1,4})H(\d{1,4})")
_WHERE = "model.adapter.heads"


def name_of(layer: int, head: int) -> str:
    return f"L{layer}H{head}"


def parse(names: Sequence[str]) -> dict[int, list[int]]:
    """Layer -> its heads, ascending. Raises UserError for what is no name of a head."""
    found: defaultdict[int, set[int]] = defaultdict(set)
    for name in names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(_WHERE, f"{shorten(name)!r} names no head", "write L12H3: head 3 of layer 12, both from 0")
        found[int(match[1])].add(int(match[2]))
    return {layer: sorted(heads) for layer, heads in sorted(found.items())}


def modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """The full names of the layers that get matrices. Raises UserError for heads that the model does not have."""
    layers, count = _layers(model), model.config.get_text_config().num_attention_heads
    for layer, heads in parse(names).items():
        if layer >= len(layers) or heads[-1] >= count:
            what = f"there is no {name_of(layer, heads[-1])}: the model has {len(layers)} layers of {count} heads"
            raise UserError(_WHERE, what, "count from 0")
    return [layers[layer][kind] for layer in parse(names) for kind in (QUERY, OUTPUT)]


def confine(policy: nn.Module, names: Sequence[str]) -> None:
    """Confines the fresh LoRA matrices of a PEFT model, on `modules`, to the heads. Raises UserError."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        what = "an adapter on single heads has never been tried under DeepSpeed"
        raise UserError("accelerate", what, "use DDP (launch/ddp.yaml)")
    inner = policy.get_base_model()
    count, layers, found = (
        inner.config.get_text_config().num_attention_heads,
        _layers(inner),
        dict(inner.named_modules()),
    )
    for layer, heads in parse(names).items():
        for second in found[layers[layer][QUERY]].lora_B.values():  # (rows of all heads, rank)
            _keep(second.weight, _of_heads(second.weight.shape[0], heads, count)[:, None])
        for first in found[layers[layer][OUTPUT]].lora_A.values():  # (rank, columns of all heads)
            _keep(first.weight, _of_heads(first.weight.shape[1], heads, count)[None, :])


def _layers(model: nn.Module) -> dict[int, dict[str, str]]:
    """Layer -> {kind: full name} of the projections of its attention. Raises UserError where they are not apart."""
    found: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for name, module in model.named_modules():
        match = re.fullmatch(rf"(?:.*\.)?layers\.(\d+)\.self_attn\.({QUERY}|{OUTPUT})", name)
        if match and isinstance(getattr(module, "base_layer", module), nn.Linear):
            found[int(match[1])][match[2]] = name
    if not found or any(len(kinds) < 2 for kinds in found.values()) or sorted(found) != list(range(len(found))):
        what = f"the heads of {type(model).__name__} cannot be told apart: no layer has its own {QUERY} and {OUTPUT}"
        raise UserError(_WHERE, what, "use a model of the Llama kind")
    return dict(found)


def _of_heads(width: int, heads: Sequence[int], count: int) -> Tensor:
    """(width,) 1 where one of `heads` lies, of `count` that share the width, else 0."""
    mask = torch.zeros(count, width // count)
    mask[list(heads)] = 1.0
    return mask.flatten()


@torch.no_grad()
def _keep(weight: nn.Parameter, mask: Tensor) -> None:
    """Sets the weight to 0 where the mask is 0, and keeps it there: a gradient of 0 moves nothing under AdamW."""
    weight.mul_(mask.to(weight.device))
    weight.register_hook(lambda gradient: gradient * mask.to(gradient))
