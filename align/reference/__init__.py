"""Who the policy is compared with, behind one call.

`adapter_off` is the policy without its LoRA matrices, `frozen` a copy of the policy at the start, anything else
another model's path. Samples may have a reference of their own (D2O's second one), and one may be named as the
policy that wrote the logged responses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.objectives import SAMPLE
from align.scoring.logprobs import response_logps

ADAPTER_OFF, FROZEN = "adapter_off", "frozen"


class References:
    """The reference of each response. `models` maps a name (`frozen`, a path) to its loaded, frozen model."""

    def __init__(
        self, policy: str | None, samples: str | None, models: dict[str, nn.Module], *, behavior: str | None = None
    ):
        self.policy, self.samples, self.behavior, self.models = policy, samples or policy, behavior, models

    @torch.no_grad()
    def logps(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        """(N, T) float32 log-prob of each response token under its reference, in nats.

        `policy` is the policy as the trainer wraps it. Every rank must call this equally often.
        """
        if self.samples == self.policy:
            return self._score(self.policy, policy, batch)
        is_sample = batch.role == SAMPLE  # (N,)
        logps = torch.zeros(batch.mask.shape, dtype=torch.float32, device=batch.mask.device)
        for who, chosen in ((self.policy, ~is_sample), (self.samples, is_sample)):
            # An empty part is scored on the whole batch and thrown away: ZeRO-3 needs all ranks to take part.
            part = batch.select(chosen) if chosen.any() else batch
            scores = self._score(who, policy, part)
            if chosen.any():
                logps[chosen] = scores
        return logps

    @torch.no_grad()
    def behavior_logps(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        """(N, T) float32 log-prob of each response token under who is said to have written it, in nats."""
        return self._score(self.behavior, policy, batch)

    def _score(self, who: str, policy: nn.Module, batch: MicroBatch) -> Tensor:
        with self.model(who, policy) as model:
            return response_logps(model, batch)

    @contextmanager
    def model(self, who: str, policy: nn.Module) -> Iterator[nn.Module]:
        """The reference model called `who`, in evaluation mode, for the length of the block."""
        if who != ADAPTER_OFF:
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


def freeze(model: nn.Module) -> nn.Module:
    """The model without gradients and in evaluation mode."""
    return model.requires_grad_(False).eval()
