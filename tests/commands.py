"""The real command line, run as a user runs it: in processes of its own."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import pytest

from align.models import EMBEDDED, cache_folder
from tests.forks import ForkedProcess, Server

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [sys.executable, "align/train.py"]
TWO_RANKS = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "align/train.py"]


def deepspeed(config: str) -> list[str]:
    """The launch command for two ranks under one of the shipped DeepSpeed configurations."""
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--use_deepspeed",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    return [*launcher, "--num_machines", "1", "--deepspeed_config_file", f"launch/{config}", "align/train.py"]


_USERS = cache_folder()
_OWN = tempfile.TemporaryDirectory(prefix="align-caches-")  # gone when the tests end


def own_cache() -> str:
    """A cache folder of its own with the user's embedded model: no run finds reference log-probs that another stored.

    Until that model has been fetched it is the user's cache, so that it is fetched once.
    """
    if not (_USERS / EMBEDDED).is_dir():
        return str(_USERS)
    folder = Path(tempfile.mkdtemp(dir=_OWN.name))
    (folder / EMBEDDED).symlink_to(_USERS / EMBEDDED)
    return str(folder)


# Passive waiting: two ranks, or a test beside other work, must not spin against each other for the cores.
_QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}


@functools.cache
def _server() -> Server:
    return Server({**os.environ, **_QUIET})


def start(command: list[str], *arguments: object) -> subprocess.Popen | ForkedProcess:
    """Starts a command in the repository's root, in a process group of its own, with a cache of its own."""
    words, environment = (
        [str(word) for word in (*command, *arguments)],
        {**os.environ, **_QUIET, "ALIGN_CACHE": own_cache()},
    )
    if words[1:2] == ["align/train.py"] or words[1:3] == ["-m", "align.cli"]:
        return _server().start(words[1:], environment)
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


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


def trained(recipe: Path, output: Path, command: list[str], *overrides: str) -> Path:
    """The run folder of a recipe that was run to its end."""
    train(command, recipe, f"output={output}", *overrides)
    return output


def assert_same_course(run: Path, other: Path, tolerance: float = 1e-5, besides: frozenset[str] = frozenset()) -> None:
    """Every loss, metric and gradient norm of two runs, step by step, but for the metrics `besides`."""
    ours, theirs = metrics(run), metrics(other)
    assert len(ours) == len(theirs) > 3
    moved = abs(ours[0]["logps/negative"] - ours[-1]["logps/negative"])
    assert moved > 0.05, "the runs must have learned something for their agreement to mean anything"
    besides |= {"grad_norm", "tokens_per_second", "reference/forwards", "guard/share"}
    for mine, other_line in zip(ours, theirs, strict=True):
        tied = {"accuracy"} if mine["step"] == 1 else set()  # all margins are 0 but for rounding
        assert mine.keys() == other_line.keys(), mine["step"]
        for key in mine.keys() - besides - tied:
            assert mine[key] == pytest.approx(other_line[key], abs=tolerance), (mine["step"], key)
        assert mine["grad_norm"] == pytest.approx(other_line["grad_norm"], rel=1e-3), mine["step"]


def kill_after_step(process, run: Path, step: int) -> None:
    """Kills all processes of a run when its metrics reach a step, with time for a checkpoint before it."""
    wait_for_step(process, run, step)
    while not any((run / "checkpoints").glob("step-*")):
        time.sleep(0.02)
    kill(process)


def wait_for_step(process, run: Path, step: int) -> None:
    """Returns when the metrics of a run that is under way reach a step."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        file = run / "metrics.jsonl"
        if file.exists() and file.read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.02)
    raise AssertionError("the run never came so far")
