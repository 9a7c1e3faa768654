"""Who the policy is compared with, behind one call, with a store of log-probs in front of everyone.

`adapter_off` is the policy without its LoRA matrices, `frozen` a copy of the policy at the start, anything else
another model's path. Samples may have a reference of their own (D2O's second one), and one may be named as the
policy that wrote the logged responses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from align.data.collate import MicroBatch
from align.objectives import SAMPLE
from align.reference.store import Store, response_keys
from align.scoring.logprobs import response_logps

ADAPTER_OFF, FROZEN = "adapter_off", "frozen"


class References:
    """The reference of each response.

    `models` maps a name (`frozen`, a path) to its loaded, frozen model; one that is not there is asked of `load`
    when it is first needed. `stores` maps a name (also `adapter_off`) to its store. `equal_calls`: every rank must
    call models equally often (ZeRO-3), so ranks decide together whether a micro-batch is forwarded, and all methods
    must be called on all ranks; otherwise each rank is free to call none.
    """

    def __init__(
        self,
        policy: str | None,
        samples: str | None,
        models: dict[str, nn.Module],
        *,
        behavior: str | None = None,
        load: Callable[[str], nn.Module] | None = None,
        stores: dict[str, Store] | None = None,
        equal_calls: bool = False,
        hashes: dict[str, str | None] | None = None,
    ):
        self.policy, self.samples, self.behavior = policy, samples or policy, behavior
        self.models, self.load, self.stores, self.equal_calls = models, load, stores or {}, equal_calls
        self.hashes = hashes or {}  # of the weights behind each name; None: not computed
        self.forwards = 0  # micro-batches that went through a reference model, since the start

    @property
    def rounding(self) -> float:
        """How far stored log-probs of a response may be from the reference's, as a mean in nats a token."""
        return max((store.rounding for store in self.stores.values()), default=0.0)

    @torch.no_grad()
    def logps(self, policy: nn.Module, batch: MicroBatch, *, live: bool = False) -> Tensor:
        """(N, T) float32 log-prob of each response token under its reference, in nats; of a stand-in, anything.

        `policy` is the policy as the trainer wraps it. `live`: past the store.
        """
        if self.samples == self.policy:
            return self._score(self.policy, policy, batch, live)
        is_sample = batch.role == SAMPLE  # (N,)
        logps = torch.zeros(batch.mask.shape, dtype=torch.float32, device=batch.mask.device)
        for who, chosen in ((self.policy, ~is_sample), (self.samples, is_sample)):
            part = batch.select(chosen) if batch.rows else batch  # nothing chosen: a stand-in
            scores = self._score(who, policy, part, live)
            if part.rows:
                logps[chosen, : scores.shape[1]] = scores
        return logps

    @torch.no_grad()
    def behavior_logps(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        """(N, T) float32 log-prob of each response token under who is said to have written it, in nats."""
        return self._score(self.behavior, policy, batch)

    def _score(self, who: str, policy: nn.Module, batch: MicroBatch, live: bool = False) -> Tensor:
        """(N, T) log-probs under `who`: the stored ones, and those of a forward for what is not stored.

        If one response is missing, the whole micro-batch is forwarded. A response's log-probs depend in their last
        bits on what is forwarded with it, so a resumed run, which finds part of a micro-batch stored, must forward
        what the first one did. For the same reason log-probs are rounded to the store's type before their first use.
        """
        store = None if live else self.stores.get(who)
        if store is None:
            if batch.rows or self.equal_calls:
                return self._forward(who, policy, batch)
            return torch.zeros_like(batch.mask, dtype=torch.float32)
        keys = response_keys(store.identity, batch.rows)
        known = dict(zip(keys, store.get(keys), strict=True))
        is_missing = any(values is None for values in known.values())
        if self.equal_calls:
            is_missing = any(gather_object([is_missing]))
        if is_missing:
            scores = self._forward(who, policy, batch)
            if batch.rows:
                self._keep(store, known, keys, scores, batch.mask)
        return _padded([known[key] for key in keys], batch.mask)

    def _forward(self, who: str, policy: nn.Module, batch: MicroBatch) -> Tensor:
        self.forwards += 1
        with self.model(who, policy) as model:
            # DDP's own forward broadcasts buffers to all ranks, which do not all come here.
            return response_logps(model.module if isinstance(model, DistributedDataParallel) else model, batch)

    @staticmethod
    def _keep(store: Store, known: dict[bytes, np.ndarray | None], keys: list[bytes], scores: Tensor, mask: Tensor):
        """Fills in what is missing in `known` and stores it; of equal responses the first one counts for all."""
        fresh = {}
        for key, values, own in zip(keys, scores.cpu(), mask.cpu(), strict=True):  # (T,) each
            if known[key] is None:
                known[key] = fresh[key] = store.rounded(values[own].numpy())
        store.put(fresh)

    @contextmanager
    def model(self, who: str, policy: nn.Module) -> Iterator[nn.Module]:
        """The reference model called `who`, in evaluation mode, for the length of the block."""
        if who != ADAPTER_OFF:
            if who not in self.models:
                with torch.random.fork_rng(devices=[]):  # loading must not shift what is drawn afterwards
                    self.models[who] = self.load(who)
            yield self.models[who]
            return
        inner = policy
        while hasattr(inner, "module"):
            inner = inner.module
        was_training = policy.training
        policy.eval()
        try:
            with inner.disable_adapter():
                yield policy
        finally:
            policy.train(was_training)


def _padded(values: list[np.ndarray], mask: Tensor) -> Tensor:
    """(N, T) of the values (T_n,) of each response, 0 elsewhere, on the device of `mask`; zeros for a stand-in."""
    padded = torch.zeros(mask.shape, dtype=torch.float32)
    if values:
        padded[mask.cpu()] = torch.from_numpy(np.concatenate(values))
    return padded.to(mask.device)


def freeze(model: nn.Module) -> nn.Module:
    """The model without gradients and in evaluation mode."""
    return model.requires_grad_(False).eval()
