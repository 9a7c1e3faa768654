"""How the parent and its workers take turns: lines over a worker's standard input and output.

A worker does one unit of work (an optimiser step, mostly) for each line it is sent, and answers with a line of
JSON; in between it sleeps in a read, so that only one side computes at a time. What libraries print goes to a log.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


class WorkerFailed(RuntimeError):
    """A worker ended before it should; the message ends with what it printed last."""


class Worker:
    """The parent's end: a process that runs one of `benchmarks.workers`."""

    def __init__(self, kind: str, folder: Path, **options: object):
        folder.mkdir(parents=True, exist_ok=True)
        self.kind, self.log = kind, folder / f"{kind}.log"
        command = [sys.executable, "-m", "benchmarks.workers", kind, json.dumps(options, default=str)]
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=worker_environment(), text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
            )  # fmt: skip

    def receive(self, event: str) -> dict:
        """The next answer, which must be of the kind `event`. Raises WorkerFailed."""
        line = self.process.stdout.readline()
        values = json.loads(line) if line else {}
        if values.get("event") != event:
            tail = self.log.read_text(errors="replace")[-3000:]
            raise WorkerFailed(f"the worker {self.kind} ended early: {line or tail}")
        return values

    def work(self) -> dict:
        """Lets the worker do its next unit; returns what it measured."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.receive("unit")

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def worker_environment() -> dict[str, str]:
    """The same for all workers: no network, no threads that spin while the other side computes."""
    quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TQDM_DISABLE": "1"}


class Gate:
    """The worker's end."""

    def __init__(self):
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # standard output is for answers only
        self._started = 0.0

    def wait(self) -> None:
        """Sleeps until the parent wants the next unit; the clock starts. Leaves if the parent is gone."""
        if not sys.stdin.readline():
            raise SystemExit(0)
        self._started = time.perf_counter()

    def done(self, **values: object) -> None:
        """Reports the unit that `wait` began, with its seconds."""
        _synchronise()
        self.send("unit", seconds=time.perf_counter() - self._started, **values)

    def send(self, event: str, **values: object) -> None:
        self._answers.write(json.dumps({"event": event, **values}) + "\n")
        self._answers.flush()

    def run(self, units: list[Callable[[], dict]]) -> None:
        """Does the units one by one, each when the parent says so, and reports what they return."""
        for unit in units:
            self.wait()
            self.done(**unit())
        self.send("end", peak_memory_bytes=peak_memory())


def _synchronise() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_memory() -> int:
    """Most memory that this process has held, in bytes: of the GPU if there is one, else resident."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
