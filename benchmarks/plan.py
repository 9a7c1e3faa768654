"""`align plan` against the run itself: the peak memory that it tells and the one that is measured.

    python benchmarks/plan.py                           # LoRA and full, at three lengths: about half an hour on 2 cores
    python benchmarks/plan.py --case lora full --length 128 --time

Every plan and every run is a process of its own, the command line that a user has: `align plan`, `align/train.py`.
What is measured is the most memory that the training process ever had resident, as the kernel counts it. Rows are
synthetic, prompts and answers of unequal lengths. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project on the path in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from align.errors import run_main
from benchmarks.gate import ROOT, WorkerFailed, worker_environment

CASES = {"lora": "{rank: 16}", "full": "null"}
LENGTHS = (128, 512, 1024)  # data.max_length
ROWS, PROMPTS_PER_STEP = 24, 4


def write_rows(file: Path, model: str, length: int) -> None:
    """Pairs whose prompt takes a quarter to a half of `length` tokens, each answer an eighth to a half."""
    from align import models
    from align.recipe import Model
    from benchmarks.workload import Writer

    draw, writer = random.Random(0), Writer(models.load_tokenizer(Model(path=model)), 0)
    with open(file, "w", encoding="utf-8") as out:
        for _ in range(ROWS):
            answers = [draw.randrange(length // 8, length // 2) for _ in range(2)]
            example = writer.row(draw.randrange(length // 4, length // 2), answers)
            texts = {f"{role}s": list(example.texts(role)) for role in ("positive", "negative")}
            out.write(json.dumps({"prompt": example.prompt, **texts}) + "\n")


def write_recipe(folder: Path, given: argparse.Namespace, case: str, length: int) -> Path:
    rows = folder / f"rows-{length}.jsonl"
    if not rows.exists():
        write_rows(rows, given.model, length)
    own = folder / f"{case}-{length}"
    own.mkdir()
    recipe = own / "recipe.yaml"
    recipe.write_text(
        f"name: {own.name}\nmodel: {{path: {given.model}, adapter: {CASES[case]}}}\n"
        f"data: {{sources: [{rows}], max_length: {length}}}\n"
        f"reference: {{store: {own / 'store'}}}\nobjective: {{name: {given.objective}}}\n"
        f"train: {{learning_rate: 1.0e-6, max_steps: {given.steps}, prompts_per_step: {PROMPTS_PER_STEP}, "
        f"tokens_per_device: {round(given.fill * length)}, precision: {given.precision}}}\noutput: {own / 'run'}\n"
    )
    return recipe


def planned(recipe: Path, probes: bool) -> dict:
    """What `align plan` says."""
    command = [sys.executable, "-m", "align.cli", "plan", str(recipe), "--json", "--probe" if probes else "--no-probe"]
    return json.loads(_run(command, recipe.parent / "plan.log")[0])


def trained(recipe: Path) -> int:
    """Bytes that the training process had resident at its peak."""
    return _run([sys.executable, "align/train.py", str(recipe)], recipe.parent / "train.log")[1]


def _run(command: list[str], log: Path) -> tuple[str, int]:
    """(what a command printed, its own peak of resident memory in bytes)."""
    with open(log, "w+") as err, open(log.with_suffix(".out"), "w+") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=worker_environment(), stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        err.seek(0), out.seek(0)
        if process.returncode:
            raise WorkerFailed(f"{' '.join(command)}: {err.read()[-3000:]}")
        return out.read(), usage.ru_maxrss * 1024


def compare(recipe: Path, with_time: bool) -> dict:
    plan, peak = planned(recipe, with_time), trained(recipe)
    told = plan["memory"]["total_bytes"]
    found = {"planned_bytes": told, "measured_bytes": peak, "error": told / peak - 1,
             "fullest": plan["memory"]["fullest"], "parts_bytes": plan["memory"]["parts_bytes"]}  # fmt: skip
    if with_time:
        lines = (recipe.parent / "run" / "metrics.jsonl").read_text().splitlines()
        steps = [line["tokens"] / line["tokens_per_second"] for line in map(json.loads, lines)]
        found["training_seconds"] = {"planned": plan["seconds"]["training"], "measured": sum(steps), "steps": steps}
    return found


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--length", nargs="+", type=int, default=list(LENGTHS), help="data.max_length")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--objective", default="dpo")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of each run")
    parser.add_argument("--fill", type=float, default=2.0, help="train.tokens_per_device as a multiple of the length")
    parser.add_argument("--time", action="store_true", help="take and compare times, too")
    return parser.parse_args()


def main() -> None:
    given, found = parse(), {}
    with tempfile.TemporaryDirectory(prefix="align-plan-") as folder:
        for length in given.length:
            for case in given.case:
                recipe = write_recipe(Path(folder), given, case, length)
                found[recipe.parent.name] = compare(recipe, given.time)
                print(f"{recipe.parent.name}: {found[recipe.parent.name]['error']:+.1%}", file=sys.stderr, flush=True)
    worst = max(abs(one["error"]) for one in found.values())
    print(json.dumps({"model": given.model, "cases": found, "largest_error": worst}, indent=2))


if __name__ == "__main__":
    run_main(main)
