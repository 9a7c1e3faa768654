"""Threads, memory and float32 products of the CPU: set where they help, left alone elsewhere, results unchanged."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from align import precision, processor


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """The number of threads is what is tested here."""


@pytest.fixture
def products():
    """The setting of float32 products, put back afterwards."""
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    yield setting
    setting.fp32_precision = before


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def capable(monkeypatch, *, intel: bool = False, **able: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    for user in (processor, precision):
        monkeypatch.setattr(user, "is_intel", lambda: intel)


@pytest.mark.parametrize("able", [{}, {"avx2": True}, {"avx512_f": True, "amx_bf16": True}])
def test_products_stay_where_they_are_without_avx512_or_with_amx(able, products, monkeypatch):
    """With AMX the same setting would round operands to bf16."""
    capable(monkeypatch, **able)
    before = products.fp32_precision
    assert processor.multiply_through_onednn() is False
    assert products.fp32_precision == before


def test_products_stay_with_mkl_on_intel(products, monkeypatch):
    capable(monkeypatch, intel=True, avx512_f=True)
    before = products.fp32_precision
    assert processor.multiply_through_onednn() is False
    assert products.fp32_precision == before


def test_small_products_go_through_mkl_and_leave_the_setting(products):
    products.fp32_precision = "bf16"
    with pytest.raises(ZeroDivisionError), processor.small_products():
        assert products.fp32_precision == "ieee"
        raise ZeroDivisionError
    assert products.fp32_precision == "bf16"
    products.fp32_precision = "tf32"  # the user's own choice
    with processor.small_products():
        assert products.fp32_precision == "tf32"


def test_products_that_are_rounded_are_refused(products, monkeypatch):
    """A processor that, against what it tells, multiplies in bf16: the probe sees it, and the setting is undone."""
    capable(monkeypatch, avx512_f=True)
    exact = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: exact(a.bfloat16().float(), b.bfloat16().float()))
    before = products.fp32_precision
    assert processor.multiply_through_onednn() is False
    assert products.fp32_precision == before


@pytest.mark.parametrize("intel", [True, False])
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 33, 5), (300, 576, 1536), (64, 2048, 576)])
def test_products_are_exact_to_float32(shape, intel, products, monkeypatch):
    """Here, whatever the processor: the same error as torch's own products, forward and backward."""
    monkeypatch.setattr(processor, "is_intel", lambda: intel)
    rows, inner, columns = shape
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(rows, inner, generator=generator, requires_grad=True)
    b = torch.randn(inner, columns, generator=generator, requires_grad=True)
    processor.multiply_through_onednn()
    (a @ b).square().sum().backward()
    exact = a.detach().double() @ b.detach().double()
    for found, expected in (
        ((a @ b).detach(), exact),
        (a.grad, 2 * exact @ b.detach().double().T),
        (b.grad, 2 * a.detach().double().T @ exact),
    ):
        assert (found - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize(
    ("given", "ranks", "expected"),
    [(None, 1, 6), (None, 2, 3), ("1", 2, 3), (None, 8, 1), ("3", 2, None), ("3", 1, None)],
)
def test_a_rank_uses_its_share_of_the_cores(given, ranks, expected, threads, monkeypatch):
    """`accelerate launch` sets OMP_NUM_THREADS=1 where the user says nothing; what the user says counts."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    torch.set_num_threads(2)
    processor.use_all_cores()
    assert torch.get_num_threads() == (expected or 2)


MEASURE = """
import ctypes, resource, sys
import torch
from align import processor
if sys.argv[1] == "kept":
    processor.keep_memory()
for _ in range(20):  # freed and asked for again
    torch.ones(2**23)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


def test_memory_is_kept():
    """Twenty times 32 MiB: with memory kept its pages are cleared once, otherwise each time."""
    faults = {
        how: int(
            subprocess.run([sys.executable, "-c", MEASURE, how], capture_output=True, check=True, text=True).stdout
        )
        for how in ("given back", "kept")
    }
    pages = 2**25 // os.sysconf("SC_PAGE_SIZE")
    assert faults["given back"] - faults["kept"] > 10 * pages


def test_precision_is_chosen_by_the_machine(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    capable(monkeypatch, avx512_f=True)
    assert precision.choose("auto") == ("fp32", "auto: no bf16 processor")
    for name in ("avx512_bf16", "amx_bf16", "bf16"):
        capable(monkeypatch, avx2=True, **{name: True})
        assert precision.choose("auto") == ("bf16", "auto: this processor is fast at it")
    capable(monkeypatch, intel=True, avx512_bf16=True)  # which is half as fast there
    assert precision.choose("auto") == ("fp32", "auto: no bf16 processor")
    capable(monkeypatch, intel=True, avx512_bf16=True, amx_bf16=True)
    assert precision.choose("auto").name == "bf16"
    for wanted in ("fp32", "bf16"):
        assert precision.choose(wanted) == (wanted, "as the recipe says")


@pytest.mark.parametrize(("fast", "name"), [(True, "bf16"), (False, "fp32")])
def test_precision_on_a_gpu_is_that_gpus(fast, name, monkeypatch):
    """An older GPU emulates bf16, which is slow; its processor is not asked."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: fast)
    capable(monkeypatch, avx512_bf16=True)
    assert precision.choose("auto").name == name
