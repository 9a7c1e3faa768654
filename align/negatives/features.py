"""What a model makes of answers, as vectors on disk, so that no answer is read twice.

The vector of an answer: the mean of the last hidden states from which its tokens are predicted, the mean log-prob of
its tokens, and the log of their number. It is kept under the SHA-256 of weights, arithmetic, prompt and answer tokens:
roles have no say, so that rows with other labels find the same vectors.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from tqdm import tqdm

from align.data.collate import collate
from align.data.share import share_out
from align.data.tokenize import TokenizedRow
from align.errors import UserError
from align.generation import Policy
from align.run import write_bytes
from align.scoring.answers import layout_for
from align.scoring.head import causal_lm, target_logps
from align.scoring.logprobs import hidden_states

_ROWS_AT_ONCE = 16  # rows that are read, and then kept, together


class Features:
    """The vectors of answers under one model; those in `folder` are read, others computed and added."""

    def __init__(self, policy: Policy, folder: Path, *, max_length: int, tokens_at_once: int, in_bf16: bool):
        self.policy, self.folder, self.in_bf16 = policy, folder, in_bf16
        self.tokens_at_once, self.layout = tokens_at_once, layout_for(policy.model, max_length)
        self.known: dict[str, np.ndarray] = {}
        for file in sorted(folder.glob("*.safetensors")):
            self.known |= _read(file)

    def of(self, rows: Sequence[TokenizedRow]) -> list[np.ndarray]:
        """(K, F) of the K answers of each row. Raises UserError for a row with values that are not finite."""
        missing = [row for row in rows if any(key not in self.known for key in self._keys(row))]
        with tqdm(total=len(rows), initial=len(rows) - len(missing), desc="features", unit="row") as bar:
            for start in range(0, len(missing), _ROWS_AT_ONCE):
                part = missing[start : start + _ROWS_AT_ONCE]
                found = self._compute(part)
                self._keep(found)
                bar.update(len(part))
        return [np.stack([self.known[key] for key in self._keys(row)]) for row in rows]

    def _keys(self, row: TokenizedRow) -> list[str]:
        shared = [self.policy.weights_sha256, self.in_bf16, row.prompt_ids]
        return [hashlib.sha256(repr([*shared, one.ids]).encode()).hexdigest() for one in row.responses]

    @torch.no_grad()
    def _compute(self, rows: Sequence[TokenizedRow]) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        model = self.policy.model
        device = causal_lm(model).get_input_embeddings().weight.device
        (groups,) = share_out(rows, world=1, tokens_per_device=self.tokens_at_once, layout=self.layout)
        for group in (group for group in groups if group):
            batch = collate(group, 0, self.layout).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.in_bf16):
                hidden = hidden_states(model, batch)  # (M, H)
                logps = target_logps(causal_lm(model), hidden, batch.targets)  # (M,)
            lengths = batch.mask.sum(-1).tolist()
            pieces = zip(hidden.float().split(lengths), logps.float().split(lengths), lengths, strict=True)
            vectors = [
                torch.cat([states.mean(0), own.mean()[None], torch.tensor([length]).to(own).log()]).cpu().numpy()
                for states, own, length in pieces
            ]
            keys = [(row, key) for row in batch.rows for key in self._keys(row)]
            for (row, key), vector in zip(keys, vectors, strict=True):
                if not np.isfinite(vector).all():
                    what = "the model's scores are not finite numbers; what was read before is kept"
                    fix = "try train.precision=fp32, or another model"
                    raise UserError(str(row.example.place), what, fix)
                found[key] = vector
        return found

    def _keep(self, found: dict[str, np.ndarray]) -> None:
        self.known |= found
        name = hashlib.sha256("".join(found).encode()).hexdigest()[:16]
        data = save({"features": np.stack(list(found.values()))}, {"keys": json.dumps(list(found))})
        write_bytes(self.folder / f"{name}.safetensors", data)


def _read(file: Path) -> dict[str, np.ndarray]:
    """key -> vector of a file; nothing of one that is damaged: it is computed again."""
    try:
        with safe_open(str(file), "np") as opened:
            return dict(zip(json.loads(opened.metadata()["keys"]), opened.get_tensor("features"), strict=True))
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return {}
