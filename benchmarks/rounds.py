"""Taking turns and counting: the units of several workers in one run, and the figures made of them."""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.flops import ModelSize, Peak, response_tokens, training_flops
from benchmarks.gate import Worker
from benchmarks.workload import Workload

WARM_UP = 2  # units of each worker that do not count: memory is still new to the process in both


class Disagreement(RuntimeError):
    """The sides did not do the same: their times cannot be compared."""


@contextlib.contextmanager
def started(workers: dict[str, tuple[str, dict]], folder: Path) -> Iterator[dict[str, Worker]]:
    """Worker processes by name, from (kind, options) each, ended with the block."""
    with contextlib.ExitStack() as stack:
        yield {
            name: stack.enter_context(Worker(kind, folder / name, **options))
            for name, (kind, options) in workers.items()
        }


def take_turns(title: str, workers: dict[str, Worker], count: int, peak: Peak) -> dict[str, list[dict]]:
    """`count` units of every worker, one worker at a time, and the peak between them; who begins changes."""
    units: dict[str, list[dict]] = {name: [] for name in workers}
    for number in range(count):
        peak.measure()
        order = list(workers) if number % 2 == 0 else list(reversed(workers))
        for name in order:
            unit = workers[name].work()
            units[name].append(unit)
            note = " (warm-up)" if number < WARM_UP else ""
            print(f"{title} {number + 1}/{count} {name} {unit['seconds']:.2f} s{note}", file=sys.stderr, flush=True)
    return units


def spread(values: Sequence[float]) -> dict:
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "all": list(values)}


def seconds(units: list[dict]) -> dict:
    return spread([unit["seconds"] for unit in units[WARM_UP:]])


def rates(units: list[dict], responses: int) -> dict:
    """Seconds a unit, and responses a second at their median."""
    found = seconds(units)
    return {"responses_per_second": responses / found["median"], "seconds": found}


def training_figures(work: Workload, units: list[dict], end: dict, size: ModelSize, peak: Peak) -> dict:
    """What a side did in the steps that count, in the fields of the benchmark's output."""
    steps, counted = work.steps[WARM_UP:], units[WARM_UP:]
    rate = statistics.median(
        training_flops(step, size) / unit["seconds"] for step, unit in zip(steps, counted, strict=True)
    )
    forwarded = sum(unit["tokens_forwarded"] for unit in counted)
    return {
        **rates(units, work.setup.prompts_per_step * work.setup.responses),
        "peak_memory_bytes": end["peak_memory_bytes"],
        "mfu": rate / peak.flops_per_second,
        "mfu_of_default_products": rate / peak.default_flops_per_second,
        "tokens_forwarded_per_response_token": forwarded / sum(map(response_tokens, steps)),
        "losses": end["losses"],
    }


def quotients(ours: dict, peer: dict) -> dict:
    """Ours over the peer's, of the medians, and the same of each pair of units that followed each other."""
    each = [theirs / mine for mine, theirs in zip(ours["seconds"]["all"], peer["seconds"]["all"], strict=True)]
    found = {
        "responses_per_second": ours["responses_per_second"] / peer["responses_per_second"],
        "least_of_a_round": min(each),
        "most_of_a_round": max(each),
    }
    if "peak_memory_bytes" in ours:
        found["peak_memory"] = ours["peak_memory_bytes"] / peer["peak_memory_bytes"]
    return found
