"""Speed and memory of this project against TRL's DPOTrainer, alternating step by step in one run.

    python benchmarks/speed.py --quick                    # under 3 minutes on 2 cores
    python benchmarks/speed.py --case k2 k8 --out speed.json
    python benchmarks/speed.py --profile                  # where the time of one of our steps goes

Both sides train the same model on the same rows, in the same order, with the same hyper-parameters, and must have
the same losses. Prints JSON on standard output and one line a measured step on standard error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project on the path in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from align.errors import run_main
from benchmarks import cases
from benchmarks.flops import Peak
from benchmarks.workload import Setup, prepare_model


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", nargs="+", choices=list(cases.CASES), help="what to measure; default: all")
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(cases.QUICK)} in a short run")
    parser.add_argument("--profile", action="store_true", help="print the top operators of one of our steps instead")
    parser.add_argument("--out", type=Path, help="also write the JSON to this file, case by case")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="the embedded default or a folder")
    parser.add_argument("--lora", type=int, metavar="RANK", help="train LoRA matrices; default: all weights")
    parser.add_argument("--layout", help="data.layout of our side; default: the recipe's")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="of both sides")
    parser.add_argument("--learning-rate", type=float, default=Setup.learning_rate)
    parser.add_argument("--steps", type=int, help="measured steps of each side; default 5, with --quick 2")
    parser.add_argument("--prompts-per-step", type=int, help="default: so that a step of TRL's has 8 to 28 pairs")
    parser.add_argument("--tokens-per-device", type=int, default=Setup.tokens_per_device, help="of our micro-batches")
    parser.add_argument("--trl-pairs", type=int, default=Setup.most_pairs, help="most pairs of TRL's micro-batches")
    parser.add_argument("--trl-as-ours", action="store_true", help="give TRL's process our settings of the processor")
    parser.add_argument("--seed", type=int, default=0, help="of the rows")
    return parser.parse_args()


def main() -> None:
    given = parse()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # and end the workers
    with tempfile.TemporaryDirectory(prefix="align-speed-") as folder:
        model = prepare_model(given.model, Path(folder) / "model")
        from align.processor import use_all_cores

        use_all_cores()
        setup = Setup(
            model, precision=given.precision, lora=given.lora, layout=given.layout, seed=given.seed,
            learning_rate=given.learning_rate, tokens_per_device=given.tokens_per_device,
            most_pairs=given.trl_pairs, trl_as_ours=given.trl_as_ours,
        )  # fmt: skip
        bench = cases.Bench(
            folder=Path(folder), setup=setup, peak=Peak(given.precision), quick=given.quick,
            measured=given.steps or (2 if given.quick else 5), prompts_per_step=given.prompts_per_step,
        )  # fmt: skip
        bench.peak.measure()
        if given.profile:
            return print(cases.profile(bench))
        result = {"machine": machine(given.precision), "command": " ".join(["benchmarks/speed.py", *sys.argv[1:]])}
        result["settings"] = {"model": given.model, "lora": given.lora, "layout": given.layout or "default"}
        result["cases"] = {}
        for name in given.case or (cases.QUICK if given.quick else cases.CASES):
            result["cases"][name] = cases.CASES[name](bench)
            result["peak_gflops_per_second"] = bench.peak.flops_per_second / 1e9
            result["default_peak_gflops_per_second"] = bench.peak.default_flops_per_second / 1e9
            if given.out:
                given.out.write_text(json.dumps(result, indent=2) + "\n")
        print(json.dumps(result, indent=2))


def machine(precision: str) -> dict:
    """What the figures depend on beside the code."""
    from align.provenance import environment

    names = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": names[0] if names else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        **environment(precision, None, {}),
    }


if __name__ == "__main__":
    run_main(main)
