"""How a run uses the processor: its share of the cores, memory that it keeps, and the faster float32 products.

Nothing here changes what is computed, beyond the order of float32 sums.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import torch

# Products that oneDNN and its wrapper keep ready: half a MiB for each shape, and every micro-batch brings new shapes.
# A few serve all layers of a micro-batch; the default, 1024, would hold half a GiB.
_FEW_PRODUCTS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64", "LRU_CACHE_CAPACITY": "64"}
_KEEP_MEMORY = {-3: 2**30, -1: 2**31 - 1}  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD of mallopt


def prepare() -> None:
    """Called once by a process that trains or scores, before it loads weights."""
    use_all_cores()
    if not torch.accelerator.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # or DeepSpeed, where it is installed, warns that it guesses so
    if not torch.cuda.is_available():
        keep_memory()
        multiply_through_onednn()


def use_all_cores() -> None:
    """This rank's share of the cores. Launchers set OMP_NUM_THREADS=1 where the user says nothing."""
    if os.environ.get("OMP_NUM_THREADS", "1") == "1":
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks))


def keep_memory() -> None:
    """Memory that a step frees is kept for the next: glibc would give each large tensor back, and the kernel clear
    its pages again."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        for option, value in _KEEP_MEMORY.items():
            libc.mallopt(option, value)


def multiply_through_onednn() -> bool:
    """Whether float32 products now go through oneDNN, with its AVX-512 kernels, in place of MKL.

    On AMD processors MKL stays with AVX2, and is half as fast where AVX-512 is whole (Zen 5); on Intel's MKL is the
    faster one. torch gives float32 products to oneDNN if they may be less exact. Where the processor has nothing less
    exact to offer (no AMX), oneDNN multiplies float32 as it is, which is tried before it is relied on.
    """
    can = getattr(torch.cpu, "get_capabilities", dict)()
    products = getattr(torch.backends.mkldnn, "matmul", None)
    if is_intel() or products is None or not can.get("avx512_f") or can.get("amx_bf16"):
        return False
    for name, value in _FEW_PRODUCTS.items():
        os.environ.setdefault(name, value)
    before, products.fp32_precision = products.fp32_precision, "bf16"
    if not _products_are_float32():
        products.fp32_precision = before
        return False
    return True


@contextlib.contextmanager
def small_products() -> Iterator[None]:
    """For products of ever new small shapes, which oneDNN would have to prepare one by one: they go through MKL."""
    products = getattr(torch.backends.mkldnn, "matmul", None)
    before = getattr(products, "fp32_precision", None)
    if before != "bf16":
        yield
        return
    products.fp32_precision = "ieee"
    try:
        yield
    finally:
        products.fp32_precision = before


def is_intel() -> bool:
    """Whether the processor is one of Intel's."""
    file = Path("/proc/cpuinfo")
    return file.exists() and "GenuineIntel" in file.read_text(encoding="utf-8", errors="replace")


def _products_are_float32() -> bool:
    """Whether products come out with float32's error: with bf16 operands it would be some thousand times larger."""
    generator = torch.Generator().manual_seed(0)
    for shape in ((64, 64, 64), (512, 576, 1536)):
        a, b = (torch.randn(shape[at : at + 2], generator=generator) for at in (0, 1))
        exact = a.double() @ b.double()
        if (torch.mm(a, b) - exact).norm() > 1e-6 * exact.norm():
            return False
    return True
