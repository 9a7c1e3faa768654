"""Where a run's numbers come from: versions, commit, device, world size, the weights it began with."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch
from accelerate import PartialState

import align


def environment(precision: str, weights_hash: str | None, references: dict[str, str | None]) -> dict:
    """The contents of `environment.json`. Hashes are of weights without adapters, by who the reference is called."""
    state = PartialState()
    packages = ("torch", "transformers", "accelerate", "datasets", "peft", "deepspeed", "trl")
    return {
        "align": align.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: version for name in packages if (version := _version(name))},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name()
        if state.device.type == "cuda"
        else platform.processor() or state.device.type,
        "cpu_threads": torch.get_num_threads(),
        "world_size": state.num_processes,
        "distributed": state.distributed_type.value,
        "precision": precision,
        "start_weights_sha256": weights_hash,
        "reference_weights_sha256": references,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The project's commit, with a mark if files differ from it; None outside a git checkout."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    return (commit + " with changes" if changed else commit) or None


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=False).stdout.strip()
