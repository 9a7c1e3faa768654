"""Matrix products of the LM head: float32 results whatever the operands, fast where the run's precision is bf16.

Rounded to bf16 a logit of 20 is off by up to 0.06, and so would be every log-prob: products of bf16 operands
must keep their float32 sums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

WORDS_AT_ONCE = 8192  # columns of a product with the head's weight: that much of it is converted at a time


def is_fast(hidden: Tensor) -> bool:
    """Whether the run computes in bf16: its hidden states do, or autocast is on."""
    return hidden.dtype == torch.bfloat16 or torch.is_autocast_enabled(hidden.device.type)


def product(a: Tensor, b: Tensor, fast: bool) -> Tensor:
    """float32 a b. `fast`: a GPU multiplies in bf16 and adds in float32, a CPU splits float32 into bf16 parts."""
    if fast and a.is_cuda:
        return torch.mm(a.bfloat16(), b.bfloat16(), out_dtype=torch.float32)
    with _plain(a, fast):
        return a.float() @ b.float()


def add_product(total: Tensor, a: Tensor, b: Tensor, fast: bool) -> None:
    """Adds a b to `total`, float32, in place."""
    if fast and a.is_cuda:
        total += product(a, b, fast)
        return
    with _plain(a, fast):
        total.addmm_(a.float(), b.float())


def raw_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, fast: bool) -> Tensor:
    """(C, V) float32 output of a linear head for `hidden` (C, H)."""
    blocks = [product(hidden, block.T, fast) for block in weight.split(WORDS_AT_ONCE)]
    logits = torch.cat(blocks, -1) if len(blocks) > 1 else blocks[0]
    return logits if bias is None else logits + bias.float()


@contextlib.contextmanager
def _plain(a: Tensor, fast: bool) -> Iterator[None]:
    """No autocast, which would round the result; on a CPU, `fast` lets oneDNN split float32 into bf16 parts."""
    backend = getattr(torch.backends.mkldnn, "matmul", None) if fast and a.device.type == "cpu" else None
    with torch.autocast(a.device.type, enabled=False):
        if backend is None:
            yield
            return
        before, backend.fp32_precision = backend.fp32_precision, "bf16"
        try:
            yield
        finally:
            backend.fp32_precision = before
