"""The cases of the benchmark. Each takes a `Bench` and returns what goes into the output under its name."""

from __future__ import annotations

import dataclasses
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.flops import ModelSize, Peak, unique_tokens
from benchmarks.gate import ROOT, WorkerFailed, worker_environment
from benchmarks.rounds import (
    WARM_UP,
    Disagreement,
    quotients,
    rates,
    seconds,
    spread,
    started,
    take_turns,
    training_figures,
)
from benchmarks.workload import Lengths, Setup, Workload, make

PROMPTS = {2: 8, 4: 4, 8: 4, 16: 1}  # responses a prompt -> prompts a step: a step of TRL's is 8 to 28 pairs
PROMPT_TOKENS = (64, 256, 512, 1024, 2048)
TOLERANCE = {"fp32": 1e-3, "bf16": 2e-2}  # of losses on the two sides, in nats
REFERENCE_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}  # of log-probs of responses, relative


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    folder: Path
    setup: Setup
    peak: Peak
    measured: int  # units that count
    quick: bool
    prompts_per_step: int | None

    def setup_of(self, responses: int, prompts: int, **changes: object) -> Setup:
        prompts = self.prompts_per_step or (max(1, prompts // 4) if self.quick else prompts)
        given = {"responses": responses, "prompts_per_step": prompts, "steps": WARM_UP + self.measured}
        shorter = {"prompt": self.setup.prompt.halved(), "response": self.setup.response.halved()}
        return dataclasses.replace(self.setup, **given | (shorter if self.quick else {}) | changes)


def precompute_reference(work: Workload) -> None:
    """Fills the store that the recipe names; TRL precomputes as it starts. Raises WorkerFailed."""
    command = [sys.executable, "-m", "align.cli", "ref", "build", str(work.recipe)]
    result = subprocess.run(command, cwd=ROOT, env=worker_environment(), capture_output=True, text=True, check=False)
    if result.returncode:
        raise WorkerFailed(f"align ref build: {result.stderr[-3000:]}")


def stored_bytes(work: Workload) -> int:
    return sum(file.stat().st_size for file in work.store.rglob("*") if file.is_file())


def trl_options(work: Workload) -> dict:
    setup = work.setup
    return {
        "recipe_file": work.recipe,
        "pairs_file": work.pairs,
        "batch": setup.pairs_per_batch,
        "accumulate": setup.pairs_per_step // setup.pairs_per_batch,
        "negatives": setup.responses - 1,
        "as_ours": setup.trl_as_ours,
    }


def about(work: Workload) -> dict:
    """How a case was set up."""
    setup = work.setup
    lengths = {"prompt": [len(row.prompt_ids) for step in work.steps for row in step]}
    lengths["response"] = [len(one.ids) for step in work.steps for row in step for one in row.responses]
    return {
        "responses_a_prompt": setup.responses,
        "prompts_a_step": setup.prompts_per_step,
        "tokens": {name: {"median": statistics.median(n), "most": max(n)} for name, n in lengths.items()},
        "ours_tokens_per_device": setup.tokens_per_device,
        "trl_pairs_a_batch": setup.pairs_per_batch,
        "trl_batches_a_step": setup.pairs_per_step // setup.pairs_per_batch,
    }


def training(bench: Bench, responses: int) -> dict:
    """Both trainers on the same rows, step by step."""
    name = f"k{responses}"
    work = make(bench.setup_of(responses, PROMPTS[responses]), bench.folder / name)
    precompute_reference(work)
    stored = stored_bytes(work)
    sides = {"ours": ("ours", {"recipe_file": work.recipe}), "trl": ("trl", trl_options(work))}
    with started(sides, bench.folder / name) as workers:
        ready = {side: worker.receive("ready") for side, worker in workers.items()}
        units = take_turns(name, workers, work.setup.steps, bench.peak)
        ends = {side: worker.receive("end") for side, worker in workers.items()}
    for side, answer in ready.items():
        if answer["digests"] != work.digests():
            raise Disagreement(f"{name}: {side} has other tokens, or meets them in another order")
    if stored_bytes(work) != stored:
        raise Disagreement(f"{name}: our side asked for log-probs that had not been precomputed")
    size = ModelSize(**ready["ours"]["size"])
    figures = {side: training_figures(work, units[side], ends[side], size, bench.peak) for side in workers}
    check_losses(name, figures, "bf16" if ready["ours"]["bf16"] else "fp32")
    return {**about(work), **figures, "ratio": quotients(figures["ours"], figures["trl"])}


def check_losses(name: str, figures: dict[str, dict], precision: str) -> None:
    """Raises Disagreement unless both sides start at ln 2 and have the same loss at every step."""
    ours, theirs = figures["ours"]["losses"], figures["trl"]["losses"]
    tolerance = TOLERANCE[precision]
    same = all(abs(mine - other) <= tolerance for mine, other in zip(ours, theirs, strict=True))
    if not same or abs(ours[0] - math.log(2)) > tolerance:
        raise Disagreement(f"{name}: the losses are {ours} and {theirs}, and should be the same, from ln 2 on")


def reference(bench: Bench) -> dict:
    """One pass of the reference over rows of 8 responses: ours by prompts, TRL's by pairs."""
    work = make(bench.setup_of(8, 8), bench.folder / "reference")
    sides = {"ours": ("ours_reference", {"recipe_file": work.recipe}), "trl": ("trl_reference", trl_options(work))}
    with started(sides, bench.folder / "reference") as workers:
        for worker in workers.values():
            worker.receive("ready")
        units = take_turns("reference", workers, work.setup.steps, bench.peak)
        ends = {side: worker.receive("end") for side, worker in workers.items()}
    check_sums(units, REFERENCE_TOLERANCE[bench.peak.precision])
    responses = work.setup.prompts_per_step * work.setup.responses
    figures = {side: rates(units[side], responses) | _peak_of(ends[side]) for side in workers}
    return {**about(work), **figures, "ratio": quotients(figures["ours"], figures["trl"])}


def check_sums(units: dict[str, list[dict]], tolerance: float) -> None:
    """Raises Disagreement unless both sides found the same log-prob of every response, relatively."""
    found = {side: [value for unit in each for row in unit["sums"] for value in row] for side, each in units.items()}
    pairs = zip(found["ours"], found["trl"], strict=True)
    if not all(math.isclose(mine, other, rel_tol=tolerance) for mine, other in pairs):
        raise Disagreement("reference: the log-probs of the two sides differ")


def prompts(bench: Bench) -> dict:
    """Our time a step for prompts of growing length, in one process that takes them in turn."""
    fixed = {"prompt": Lengths(64, 0.0, 1, 2048), "response": Lengths(100, 0.0, 1, 512)}
    count = len(PROMPT_TOKENS)
    setup = bench.setup_of(8, 1, steps=count * (1 + bench.measured), **fixed)
    work = make(setup, bench.folder / "prompts", prompts=PROMPT_TOKENS)
    precompute_reference(work)
    with started({"ours": ("ours", {"recipe_file": work.recipe})}, bench.folder / "prompts") as workers:
        workers["ours"].receive("ready")
        units = take_turns("prompts", workers, setup.steps, bench.peak)["ours"]
        end = workers["ours"].receive("end")
    found = []
    for index, tokens in enumerate(PROMPT_TOKENS):
        taken = spread([unit["seconds"] for unit in units[count + index :: count]])
        unique = statistics.median(sum(map(unique_tokens, step)) for step in work.steps[count + index :: count])
        found.append({"prompt_tokens": tokens, "unique_tokens": unique, "seconds": taken})
    for one in found:
        one["tokens_growth"] = one["unique_tokens"] / found[0]["unique_tokens"]
        one["seconds_growth"] = one["seconds"]["median"] / found[0]["seconds"]["median"]
    return {"responses_a_prompt": 8, "prompts_a_step": setup.prompts_per_step, "ours": found, **_peak_of(end)}


def sampling(bench: Bench) -> dict:
    """8 answers to each of 16 prompts: ours, and `model.generate` prompt by prompt, in one call or in one each."""
    k, folder = 8, bench.folder / "sampling"
    work = make(bench.setup_of(2, 16), folder)
    options = {"recipe_file": work.recipe, "k": k}
    sides = {
        "ours": ("sampler", options),
        "by_prompt": ("generate", options | {"together": True}),
        "by_sample": ("generate", options | {"together": False, "prompts": 1}),
    }
    with started(sides, folder) as workers:
        for worker in workers.values():
            worker.receive("ready")
        units = take_turns("sampling", workers, work.setup.steps, bench.peak)
    figures = {}
    for side, found in units.items():
        rate = [unit["tokens"] / unit["seconds"] for unit in found[WARM_UP:]]
        figures[side] = rates(found, found[0]["answers"]) | {"tokens_per_second": spread(rate)}
    ratio = {
        f"{name}_over_{side}": figures["ours"]["responses_per_second"] / figures[side]["responses_per_second"]
        for name, side in (("ours", "by_prompt"), ("ours", "by_sample"))
    }
    return {"answers_a_prompt": k, "prompts": work.setup.prompts_per_step, **figures, "ratio": ratio}


def startup(bench: Bench) -> dict:
    """Seconds of `align check`, and of `align/train.py` from launch to its first optimiser step, files cached."""
    work = make(bench.setup_of(2, 8), bench.folder / "startup")
    check = [sys.executable, "-m", "align.cli", "check", str(work.recipe)]
    found: dict[str, list[float]] = {"check": [], "first_step": []}
    for number in range(WARM_UP + 3):
        train = [sys.executable, "align/train.py", str(work.recipe), f"output={work.recipe.parent / f'run-{number}'}"]
        for name, command, awaited in (("check", check, ": ok"), ("first_step", train, "step 1/")):
            found[name].append(_seconds_until(command, awaited))
            print(f"startup {number + 1} {name} {found[name][-1]:.2f} s", file=sys.stderr, flush=True)
    return {f"{name}_seconds": spread(values[WARM_UP:]) for name, values in found.items()}


def _seconds_until(command: list[str], awaited: str) -> float:
    """How long a command takes to print a line with `awaited` in it; then it is ended."""
    begun = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=ROOT, env=worker_environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines: list[str] = []
    try:
        for line in process.stdout:
            if awaited in line:
                return time.perf_counter() - begun
            lines.append(line)
        raise WorkerFailed(f"{' '.join(command)} ended without {awaited!r}: {''.join(lines[-20:])}")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def rows(bench: Bench) -> dict:
    """Our peak memory with 200 and with 20,000 rows of the same length."""
    found = {}
    fixed = {"prompt": Lengths(160, 0.0, 1, 768), "response": Lengths(100, 0.0, 1, 512)}
    for count in (200, 20_000):
        folder = bench.folder / f"rows-{count}"
        work = make(bench.setup_of(2, 4, **fixed), folder, rows=count)
        with started({"ours": ("ours", {"recipe_file": work.recipe})}, folder) as workers:
            workers["ours"].receive("ready")
            take_turns(f"rows {count}", workers, work.setup.steps, bench.peak)
            found[count] = workers["ours"].receive("end")["peak_memory_bytes"]
    few, many = found.values()
    return {"peak_memory_bytes": found, "ratio": many / few}


def precision(bench: Bench) -> dict:
    """Our own speed under `train.precision`: fp32, bf16, and what auto chooses."""
    sides, folder = {}, bench.folder / "precision"
    for name in ("fp32", "bf16", "auto"):
        work = make(bench.setup_of(2, 8, precision=name), folder / name)
        precompute_reference(work)
        sides[name] = ("ours", {"recipe_file": work.recipe})
    with started(sides, folder) as workers:
        ready = {side: worker.receive("ready") for side, worker in workers.items()}
        units = take_turns("precision", workers, work.setup.steps, bench.peak)
        ends = {side: worker.receive("end") for side, worker in workers.items()}
    figures = {side: {"seconds": seconds(units[side]), **_peak_of(ends[side])} for side in workers}
    speed_up = {
        side: figures["fp32"]["seconds"]["median"] / figures[side]["seconds"]["median"] for side in ("bf16", "auto")
    }
    chosen = "bf16" if ready["auto"]["bf16"] else "fp32"
    return {**about(work), **figures, "auto_chooses": chosen, "speed_over_fp32": speed_up}


def _peak_of(end: dict) -> dict:
    return {"peak_memory_bytes": end["peak_memory_bytes"]}


def profile(bench: Bench) -> str:
    """The top operators of one of our optimiser steps."""
    work = make(bench.setup_of(2, 8, steps=3), bench.folder / "profile")
    precompute_reference(work)
    options = {"recipe_file": work.recipe, "profile_step": 2}
    with started({"ours": ("ours", options)}, bench.folder / "profile") as workers:
        workers["ours"].receive("ready")
        return take_turns("profile", workers, 3, bench.peak)["ours"][2]["profile"]


CASES: dict[str, Callable[[Bench], dict]] = {f"k{k}": partial(training, responses=k) for k in PROMPTS}
CASES |= {one.__name__: one for one in (prompts, sampling, reference, startup, rows, precision)}
QUICK = ("k2", "k8", "reference")
