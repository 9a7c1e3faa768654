"""Sentence vectors: the mean of a small encoder's last hidden states, texts batched by their length.

Shapes: N texts, D size of a vector (384 of all-MiniLM-L6-v2).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from align.errors import UserError
from align.negatives.scorer_models import load_encoder

TOKENS_AT_ONCE = 4096  # of a batch, padding included
_TEXTS_AT_ONCE = 4096  # tokenised together
_LONGEST = 512  # tokens, where a folder does not say
_KINDS = {"Transformer", "Pooling", "Normalize"}


class Encoder:
    """An encoder's folder, loaded. Raises UserError."""

    def __init__(self, folder: Path):
        self.model, self.tokenizer = load_encoder(folder)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        said = _json(folder / "sentence_bert_config.json").get("max_seq_length") or _LONGEST
        self.longest = min(said, getattr(self.model.config, "max_position_embeddings", said))
        if not _takes_means(folder):
            what = "does not make its vectors as means over tokens"
            raise UserError("mining.encoder", f"{folder.name} {what}", "name an encoder that does")

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) float32 unit vectors. What lies behind the encoder's longest input is not read."""
        found = np.zeros((len(texts), self.model.config.hidden_size), np.float32)
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            # nothing said has no tokens to take a mean over, unless an encoder writes some of its own
            part = [text if text.strip() else "." for text in texts[start : start + _TEXTS_AT_ONCE]]
            ids = self.tokenizer(part, truncation=True, max_length=self.longest)["input_ids"]
            for batch in by_length([len(one) for one in ids], TOKENS_AT_ONCE):
                found[[start + index for index in batch]] = self._vectors([ids[index] for index in batch])
        return found

    def _vectors(self, ids: list[list[int]]) -> np.ndarray:
        padded, mask = padded_ids(ids, self.tokenizer.pad_token_id, self.model.device)
        states = self.model(input_ids=padded, attention_mask=mask).last_hidden_state  # (N, S, D)
        weights = mask[..., None].to(states.dtype)
        means = (states * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(means, dim=-1).float().cpu().numpy()


def _takes_means(folder: Path) -> bool:
    """Whether a folder of sentence-transformers says no more than: the mean over tokens, perhaps to unit length."""
    pooling, modules = _json(folder / "1_Pooling" / "config.json"), _json(folder / "modules.json")
    modes = {name for name, is_on in pooling.items() if name.startswith("pooling_mode_") and is_on is True}
    kinds = {one["type"].rpartition(".")[2] for one in modules or ()}
    return modes <= {"pooling_mode_mean_tokens"} and bool(modes or not pooling) and kinds <= _KINDS


def by_length(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Indices in batches of like length, each of at most `most` tokens with padding, or of a single text."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= most:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def padded_ids(ids: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, S) token ids padded on the right, and (N, S) their mask."""
    longest = max(map(len, ids))
    padded = torch.tensor([[*one, *[pad_id] * (longest - len(one))] for one in ids], device=device)
    mask = torch.tensor([[1] * len(one) + [0] * (longest - len(one)) for one in ids], device=device)
    return padded, mask


def _json(file: Path):
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
