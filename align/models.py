"""The policy, its tokenizer and its adapter from a recipe; nothing else loads weights, but `negatives.scorer_models`.

`model.path` is the embedded default (whose folder `align.embedded` makes, once), a folder, a .gguf file or a hub id.
transformers and peft are imported only when something is loaded: `align check` uses `check_path` alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from align import embedded
from align.errors import UserError, run_main, shorten
from align.run import whole_folder

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from align.recipe import Adapter, Model

EMBEDDED = "smollm2-135m-instruct"


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
    return embedded.plain(loaded) if extra else loaded


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


def fetch_embedded() -> Path:
    """The folder of the embedded default, fetched and converted on first use."""
    return embedded.fetch(cache_folder() / EMBEDDED)


@contextlib.contextmanager
def _load_errors(path: str):
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:
        reason = shorten(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__, 160)
        fix = "check the name and the network, or give a folder" if "/" in path else "check the folder"
        raise UserError("model.path", f"{shorten(path)} cannot be loaded: {reason}", fix) from None


if __name__ == "__main__":
    run_main(lambda: print(fetch_embedded()))
