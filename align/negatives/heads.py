"""The policy and the reference that candidates are scored by: log-probs and hidden states of responses.

Without `mining.policy` the recipe's model is the policy. A finished run brings its policy and, as reference, its
base; the path of a model is a policy whose reference is the recipe's model. Per-token log-probs of models without an
adapter go through the store of references: what is scored here is not scored again by a run with that reference.

Shapes: N responses, T tokens of a response, H hidden size.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import yaml

from align import models, precision
from align.data.collate import MicroBatch, collate
from align.data.ledger import Ledger
from align.data.share import share_out
from align.data.templates import TemplateRefuses
from align.data.tokenize import ROLE_NUMBERS, PromptTooLong, TokenizedRow, encode_row
from align.errors import UserError, shorten
from align.evaluation import subject
from align.negatives.mining_checks import is_run
from align.negatives.scorer_models import files_sha256, folder_of
from align.recipe import Recipe
from align.reference.store import STORE_OFF, Store, identity, response_keys, store_folder
from align.run import RunFolder
from align.scoring.answers import Head, layout_for
from align.scoring.head import causal_lm
from align.scoring.logprobs import hidden_states, response_logps

if TYPE_CHECKING:
    from align.negatives.scorers import Item

TOKENS_AT_ONCE = 4096
_ALL_ROLES = set(ROLE_NUMBERS.values())
Read = Callable[[torch.nn.Module, MicroBatch], list[np.ndarray]]


@dataclasses.dataclass
class _Loaded:
    head: Head
    tokenizer: object
    layout: str
    store: Store | None


class Heads:
    """The models of a recipe's mining, loaded when they are first asked."""

    def __init__(self, recipe: Recipe):
        self.recipe, self.path = recipe, recipe.mining.policy
        self.is_run = self.path is not None and is_run(self.path)
        self.run = _recipe_of(self.path) if self.is_run else None  # of the run, as it was written
        asked = self.run["train"]["precision"] if self.run else recipe.train.precision
        self.in_bf16 = precision.choose(asked).name == precision.BF16
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: dict[str, _Loaded] = {}

    def identity(self, who: str) -> str:
        """What the scores of `policy` or `reference` depend on beside the texts; loads nothing."""
        parts = ["bf16" if self.in_bf16 else "fp32", str(self.recipe.data.max_length)]
        if self.is_run:
            base = self.run["model"]
            parts.append(files_sha256(folder_of(base["path"], "mining.policy", base["revision"])))
            if who == "policy":
                parts.append(files_sha256(RunFolder(self.path).final))
        elif who == "policy" and self.path is not None:
            parts.append(files_sha256(folder_of(self.path, "mining.policy")))
        else:
            parts.append(files_sha256(folder_of(self.recipe.model.path, "model.path", self.recipe.model.revision)))
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def logps(self, who: str, items: Sequence[Item]) -> list[np.ndarray | None]:
        """(T,) log-probs in nats of each response's tokens; None where it cannot be scored whole."""
        loaded = self._load(who)
        rows, store = self._encoded(loaded, items), loaded.store
        keys = dict(zip(rows, response_keys(store.identity, rows.values()), strict=True)) if store else {}
        kept = zip(keys, store.get(list(keys.values())), strict=True) if store else ()
        found = {place: values for place, values in kept if values is not None}
        fresh = self._forward(loaded, items, {place: row for place, row in rows.items() if place not in found}, _logps)
        if store:
            store.put({keys[place]: values for place, values in fresh.items()})
        return [(found | fresh).get(place) for place in range(len(items))]

    def mean_states(self, who: str, items: Sequence[Item]) -> list[np.ndarray | None]:
        """(H,) mean last hidden state over the positions that predict each response's tokens; None as above."""
        loaded = self._load(who)
        found = self._forward(loaded, items, self._encoded(loaded, items), _means)
        return [found.get(place) for place in range(len(items))]

    def _encoded(self, loaded: _Loaded, items: Sequence[Item]) -> dict[int, TokenizedRow]:
        """place of an item -> its prompt with its response alone, for those that can be scored whole."""
        rows = {place: self._one(loaded, item) for place, item in enumerate(items)}
        return {place: row for place, row in rows.items() if row is not None}

    def _one(self, loaded: _Loaded, item: Item) -> TokenizedRow | None:
        """A prompt with one response; None if it is too long or the template has no place for it."""
        ledger, longest = Ledger(), self.recipe.data.max_length
        bare = {name: item.response[name] for name in ("text", "role", "tool_calls") if name in item.response}
        try:
            row = encode_row(
                loaded.tokenizer, item.row.example([bare]), roles=_ALL_ROLES, max_length=longest, ledger=ledger
            )
        except (PromptTooLong, TemplateRefuses):
            return None
        if not row.responses or ledger.dropped["response truncated"]:
            return None
        return dataclasses.replace(row, responses=(dataclasses.replace(row.responses[0], role=loaded.head.role),))

    @torch.no_grad()
    def _forward(
        self, loaded: _Loaded, items: Sequence[Item], rows: dict[int, TokenizedRow], read: Read
    ) -> dict[int, np.ndarray]:
        """What `read` tells of each of the encoded items, by place; a prompt lies once for all its responses."""
        by_prompt: dict[str, list[int]] = {}
        for place in rows:
            by_prompt.setdefault(items[place].row.key, []).append(place)
        joined = {}
        for places in by_prompt.values():
            responses = tuple(rows[place].responses[0] for place in places)
            row = dataclasses.replace(rows[places[0]], responses=responses)
            joined[id(row)] = row, places
        found: dict[int, np.ndarray] = {}
        if not joined:
            return found
        trees = [row for row, _ in joined.values()]
        (groups,) = share_out(trees, world=1, tokens_per_device=TOKENS_AT_ONCE, layout=loaded.layout)
        for group in (group for group in groups if group):
            batch = collate(group, 0, loaded.layout).to(self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.in_bf16):
                values = read(loaded.head.model, batch)
            found |= dict(zip([place for row in group for place in joined[id(row)][1]], values, strict=True))
        return found

    def _load(self, who: str) -> _Loaded:
        if who not in self._loaded:
            if self.is_run:
                self._load_run()
            else:
                path = self.path if who == "policy" and self.path is not None else self.recipe.model.path
                self._loaded[who] = self._load_model(path)
        return self._loaded[who]

    def _load_run(self) -> None:
        found = subject.load(self.path)
        if subject.POLICY not in found.heads or found.prefix is not None:
            what = "is a run of likra, which has heads" if found.prefix is None else "was trained under data.nat"
            raise UserError("mining.policy", f"{shorten(self.path)} {what}", "name a run of another objective")
        for who, name in (("policy", subject.POLICY), ("reference", subject.BASE)):
            self._loaded[who] = _Loaded(found.heads[name], found.tokenizer, found.layout, None)

    def _load_model(self, path: str) -> _Loaded:
        options = dataclasses.replace(self.recipe.model, path=path, adapter=None)
        model = models.load_model(options, dtype=torch.bfloat16 if self.in_bf16 else torch.float32).eval()
        store = self._store(model)
        model = model.to(self.device)
        layout = layout_for(model, self.recipe.data.max_length)
        return _Loaded(Head(model, 0), models.load_tokenizer(options), layout, store)

    def _store(self, model: torch.nn.Module) -> Store | None:
        """The store that a run with this model as its reference would use."""
        reference = self.recipe.reference
        if reference.store == STORE_OFF:
            return None
        who = identity(
            models.weights_hash(model), causal_lm(model).config.to_dict(), "bf16" if self.in_bf16 else "fp32"
        )
        return Store(store_folder(reference.store), who, dtype=reference.store_dtype)


def _recipe_of(run: str) -> dict:
    return yaml.safe_load(RunFolder(run).recipe.read_text(encoding="utf-8"))


def _logps(model: torch.nn.Module, batch: MicroBatch) -> list[np.ndarray]:
    logps, mask = response_logps(model, batch).cpu(), batch.mask.cpu()  # (N, T)
    return [own[real].numpy() for own, real in zip(logps, mask, strict=True)]


def _means(model: torch.nn.Module, batch: MicroBatch) -> list[np.ndarray]:
    states = hidden_states(model, batch).float().cpu()  # (M, H), response by response
    return [own.mean(0).numpy() for own in states.split(batch.mask.sum(1).tolist())]
