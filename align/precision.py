"""Which arithmetic a run uses: fp32, or bf16 products around float32 weights, sums and optimiser state.

bf16 means autocast over trained weights that stay float32; weights that do not train (under LoRA) are held in bf16.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from align.processor import is_intel

FP32, BF16 = "fp32", "bf16"
_FAST = ("amx_bf16", "bf16")  # what processors call their units for bf16 products (Intel, Arm)


class Precision(NamedTuple):
    name: str  # fp32 | bf16
    why: str


def choose(wanted: str) -> Precision:
    """What `train.precision` comes to on this machine; `auto` takes bf16 where the hardware is fast at it."""
    if wanted != "auto":
        return Precision(wanted, "as the recipe says")
    if torch.cuda.is_available():
        fast, who = torch.cuda.is_bf16_supported(including_emulation=False), "GPU"
    else:
        fast, who = cpu_is_fast(), "processor"
    return Precision(BF16, f"auto: this {who} is fast at it") if fast else Precision(FP32, f"auto: no bf16 {who}")


def cpu_is_fast() -> bool:
    """Whether this processor multiplies bf16 faster than float32.

    With AVX-512 alone AMD's do; Intel's are half as fast then (166 against 329 GFLOP/s, measured on two cores).
    """
    able = getattr(torch.cpu, "get_capabilities", dict)()  # not in older torch: then the answer is no
    return any(able.get(name) for name in _FAST) or bool(able.get("avx512_bf16") and not is_intel())
