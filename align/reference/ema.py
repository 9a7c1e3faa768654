"""Running means of the policy's trained weights, and what they think of responses (Adaptive-DPO's annotators)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.scoring.logprobs import response_logps


class RunningMeans:
    """One copy of the trained weights for each decay, moved towards the policy after every optimiser step.

    Begins as the policy itself. Every rank keeps its own; under DDP they are equal, since the weights are.
    """

    def __init__(self, policy: nn.Module, decays: Sequence[float]):
        self.decays = tuple(decays)
        self.live = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        self.copies = [{name: w.detach().clone() for name, w in self.live.items()} for _ in self.decays]

    @torch.no_grad()
    def update(self) -> None:
        """mean = decay * mean + (1 - decay) * policy."""
        for decay, copy in zip(self.decays, self.copies, strict=True):
            for name, weight in self.live.items():
                copy[name].lerp_(weight.detach(), 1 - decay)

    @torch.no_grad()
    def logps(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        """(M, N, T) float32 log-prob of each response token under each mean, in nats.

        `policy` is the policy as the trainer wraps it; its weights are as before when this returns.
        """
        scores = []
        for copy in self.copies:
            with self._in_place_of_policy(copy):
                scores.append(response_logps(policy, batch))
        return torch.stack(scores)

    @contextmanager
    def _in_place_of_policy(self, copy: dict[str, Tensor]) -> Iterator[None]:
        own = {name: weight.data for name, weight in self.live.items()}
        for name, weight in self.live.items():
            weight.data = copy[name]
        try:
            yield
        finally:
            for name, weight in self.live.items():
                weight.data = own[name]

    def save(self, file: Path) -> None:
        save_file({f"{index}/{name}": w for index, copy in enumerate(self.copies) for name, w in copy.items()}, file)

    def load(self, file: Path) -> None:
        device = next(iter(self.live.values())).device
        for key, values in load_file(file, device=str(device)).items():
            index, _, name = key.partition("/")
            self.copies[int(index)][name] = values
