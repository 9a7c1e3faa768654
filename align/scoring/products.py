"""Matrix products of the LM head: float32 results whatever the operands, fast where the run's precision is bf16.

Rounded to bf16 a logit of 20 is off by up to 0.06, and so would be every log-prob: products of bf16 operands
must keep their float32 sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

# (positions, words) of one product with the head's weight. 4 MiB of logits stay in a CPU's cache, and of the shapes
# tried (128 to 2048 by 2048 to 49152) it is among the fastest to multiply; a GPU wants larger ones.
TILE = {"cpu": (512, 2048), "cuda": (4096, 8192)}


def tile(device: torch.device) -> tuple[int, int]:
    """(positions, words) of a product on a device."""
    return TILE.get(device.type, TILE["cuda"])


def in_bf16(hidden: Tensor) -> bool:
    """Whether to multiply in bf16: on a GPU whose run computes in it (its hidden states do, or autocast is on).

    CPUs always multiply in float32: where they are fast at bf16 they are at float32, too, and the head is small.
    """
    return hidden.is_cuda and (hidden.dtype == torch.bfloat16 or torch.is_autocast_enabled("cuda"))


def product(a: Tensor, b: Tensor, bf16: bool, out: Tensor | None = None) -> Tensor:
    """float32 a b, in `out` if given. `bf16`: operands of bf16, on a GPU."""
    if bf16:
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    with torch.autocast(a.device.type, enabled=False):  # which would round the result
        return torch.mm(a.float(), b.float(), out=out)


def add_product(total: Tensor, a: Tensor, b: Tensor, bf16: bool) -> None:
    """Adds a b to `total`, float32, in place."""
    if bf16:
        total += product(a, b, bf16)
        return
    with torch.autocast(a.device.type, enabled=False):
        total.addmm_(a.float(), b.float())


def raw_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, bf16: bool) -> Tensor:
    """(C, V) float32 output of a linear head for `hidden` (C, H)."""
    blocks = [product(hidden, block.T, bf16) for block in weight.split(tile(hidden.device)[1])]
    logits = torch.cat(blocks, -1) if len(blocks) > 1 else blocks[0]
    return logits if bias is None else logits + bias.float()
