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
        self._follow()
        for decay, copy in zip(self.decays, self.copies, strict=True):
            for name, weight in self.live.items():
                copy[name].lerp_(weight.detach(), 1 - decay)

    @torch.no_grad()
    def logps(self, policy: nn.Module, batch: MicroBatch) -> Tensor:
        """(M, N, T) float32 log-prob of each response token under each mean, in nats.

        `policy` is the policy as the trainer wraps it; it is as before when this returns.
        """
        self._follow()
        scores = []
        for copy in self.copies:
            with self._in_place_of(policy, copy):
                scores.append(response_logps(policy, batch))
        return torch.stack(scores)

    def _follow(self) -> None:
        """Moves the copies to where the policy is: they are made before the trainer moves it to a device."""
        self.copies = [{name: w.to(self.live[name].device) for name, w in copy.items()} for copy in self.copies]

    @contextmanager
    def _in_place_of(self, policy: nn.Module, copy: dict[str, Tensor]) -> Iterator[None]:
        """The policy with these weights, in evaluation mode, for the length of the block."""
        own, was_training = {name: weight.data for name, weight in self.live.items()}, policy.training
        policy.eval()
        try:
            for name, weight in self.live.items():
                weight.data = copy[name]
            yield
        finally:
            for name, weight in self.live.items():
                weight.data = own[name]
            policy.train(was_training)

    def save(self, file: Path) -> None:
        save_file({f"{index}/{name}": w for index, copy in enumerate(self.copies) for name, w in copy.items()}, file)

    def load(self, file: Path) -> None:
        device = next(iter(self.live.values())).device
        for key, values in load_file(file, device=str(device)).items():
            index, _, name = key.partition("/")
            self.copies[int(index)][name] = values
