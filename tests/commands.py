"""The real command line, run as a user runs it: in processes of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [sys.executable, "align/train.py"]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "align/train.py"]


def deepspeed(config: str) -> list[str]:
    """The launch command for two ranks under one of the shipped DeepSpeed configurations."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--use_deepspeed", "--num_processes", "2"]
    return [*launcher, "--num_machines", "1", "--deepspeed_config_file", f"launch/{config}", "align/train.py"]


def start(command: list[str], *arguments: object) -> subprocess.Popen:
    """Starts a command in the repository's root, in a process group of its own, output kept together."""
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        cwd=ROOT,
        # Passive waiting: two ranks, or a test beside other work, must not spin against each other for the cores.
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def run(command: list[str], *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess:
    process = start(command, *arguments)
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a command and everything it started; torchrun puts its workers into sessions of their own."""
    family = [*psutil.Process(process.pid).children(recursive=True), process]
    for member in family:
        member.kill()
    process.communicate()


def train(command: list[str], *arguments: object) -> str:
    """Runs a training command to its end and returns what it printed. Fails with its output if it fails."""
    result = run(command, *arguments)
    assert result.returncode == 0, f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    return result.stdout


def metrics(run_folder: Path) -> list[dict]:
    return [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]


def losses(run_folder: Path) -> list[float]:
    return [line["loss"] for line in metrics(run_folder)]
