"""The contract between an objective and the rest of the program, on one page.

An objective is a frozen dataclass in a file of its own. Its fields are its hyper-parameters, declared with
`align.schema.option`. It is called on a `Batch` of log-probs and returns unreduced `Losses`; the trainer sums
them and divides by the number of units in the whole optimiser step over all ranks, so micro-batch size,
accumulation and world size cannot change the result. It never sees model, tokenizer, accelerator or recipe.

Shapes: N responses, T response tokens (of the longest response), P pairs, U units. float32 unless said.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

POSITIVE, SAMPLE, NEGATIVE = 1, 0, -1

UNITS = ("token", "response", "positive", "negative", "pair", "prompt")

# What an objective may ask of the rest of the program. Responses of a role nobody names are not even forwarded.
NEEDS = ("reference", "positives", "negatives", "samples", "pairs")


@dataclass(frozen=True)
class Batch:
    """What a micro-batch looks like to an objective. Padding rows do not exist; padding tokens have mask 0."""

    logps: Tensor  # (N, T) policy log-prob of each response token, natural log; 0 where mask is 0
    mask: Tensor  # (N, T) bool
    role: Tensor  # (N,) int: 1 positive, -1 negative, 0 sample
    prompt: Tensor  # (N,) int: which prompt a response answers
    pairs: Tensor  # (P, 2) int: rows of (positive, negative) of the same prompt
    ref_logps: Tensor | None = None  # (N, T) under the reference, without gradient
    behavior_logps: Tensor | None = None  # (N, T) under the policy that wrote the response
    reward: Tensor | None = None  # (N,)
    weight: Tensor | None = None  # (N,) example weights; None means 1
    step_label: Tensor | None = None  # (N, T) 1 good, -1 bad, 0 unjudged

    def __post_init__(self) -> None:
        n, t = self.logps.shape
        assert self.mask.shape == (n, t) and self.mask.dtype == torch.bool, "mask is (N, T) bool"
        assert self.role.shape == self.prompt.shape == (n,), "role and prompt are (N,)"
        assert self.pairs.ndim == 2 and self.pairs.shape[1] == 2, "pairs is (P, 2)"
        for name in ("ref_logps", "behavior_logps", "step_label"):
            value = getattr(self, name)
            assert value is None or value.shape == (n, t), f"{name} is (N, T)"
        for name in ("reward", "weight"):
            value = getattr(self, name)
            assert value is None or value.shape == (n,), f"{name} is (N,)"

    def sums(self) -> Tensor:
        """(N,) log-prob of each whole response in nats: the sum over its tokens."""
        return (self.logps.float() * self.mask).sum(-1)

    def log_ratios(self) -> Tensor:
        """(N,) log-prob of each response under the policy minus under the reference, in nats."""
        assert self.ref_logps is not None, "the objective must list 'reference' in `needs`"
        return ((self.logps.float() - self.ref_logps.float()) * self.mask).sum(-1)


@dataclass(frozen=True)
class Losses:
    """What an objective returns: nothing is reduced, the trainer does that."""

    losses: Tensor  # (U,) one per unit of `normalize_by`, in the order of the units in the batch
    metrics: dict[str, Tensor] = field(default_factory=dict)  # name -> (any number,) real items only, detached


@dataclass(frozen=True)
class Objective:
    """Base of all objectives: `needs`, `normalize_by` and `__call__(batch) -> Losses`."""

    needs: ClassVar[tuple[str, ...]] = ()
    normalize_by: ClassVar[str] = "prompt"

    def __call__(self, batch: Batch) -> Losses:
        raise NotImplementedError

    @classmethod
    def roles(cls) -> set[int]:
        """The roles whose responses the objective reads; others need not be forwarded."""
        wanted = {"positives": {POSITIVE}, "negatives": {NEGATIVE}, "samples": {SAMPLE}, "pairs": {POSITIVE, NEGATIVE}}
        return set().union(*(wanted[need] for need in cls.needs if need in wanted))


def prompt_index(batch: Batch) -> tuple[Tensor, int]:
    """(N,) prompts renumbered 0..U-1 in ascending order of `batch.prompt`, and U."""
    names, index = batch.prompt.unique(return_inverse=True)
    return index, len(names)


def role_means(batch: Batch, values: Tensor, role: int) -> Tensor:
    """(U,) for each prompt, the mean of `values` (N,) over its responses of one role.

    Raises ValueError if a prompt has none: the trainer leaves such prompts out and counts them.
    """
    index, num_prompts = prompt_index(batch)
    chosen = (batch.role == role).to(values.dtype)
    counts = torch.zeros(num_prompts, dtype=values.dtype, device=values.device).index_add(0, index, chosen)
    if (counts == 0).any():
        raise ValueError(f"a prompt of the batch has no response of role {role}")
    return torch.zeros_like(counts).index_add(0, index, values * chosen) / counts


def count_units(batch: Batch, unit: str) -> int:
    """How many units of `normalize_by` a batch holds; equals the number of losses an objective returns."""
    return len(unit_weights(batch, unit))


def unit_weights(batch: Batch, unit: str) -> Tensor:
    """(U,) example weight of each unit, in the order of the losses.

    A pair weighs the product of its two responses' weights; a prompt the mean over its responses that were
    given as data (samples carry no weight of their own).
    """
    weight = torch.ones_like(batch.role, dtype=torch.float32) if batch.weight is None else batch.weight.float()
    if unit == "token":
        return weight[:, None].expand(batch.mask.shape)[batch.mask]
    if unit == "pair":
        return weight[batch.pairs].prod(-1)
    if unit == "prompt":
        index, num_prompts = prompt_index(batch)
        given = (batch.role != SAMPLE).float()
        zeros = torch.zeros(num_prompts, device=weight.device)
        counts = zeros.index_add(0, index, given)
        return torch.where(counts > 0, zeros.index_add(0, index, weight * given) / counts.clamp(min=1), 1.0)
    return weight[
        {"positive": batch.role == POSITIVE, "negative": batch.role == NEGATIVE}.get(unit, batch.role == batch.role)
    ]


def available() -> list[str]:
    """The names of the objectives that ship with the project: the files of this folder."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> type[Objective]:
    """The objective class in `align/objectives/<name>.py`, or in a dotted module of your own.

    Raises LookupError if there is no such module, or not exactly one objective in it.
    """
    if "/" in name or "" in name.split("."):  # a path or a relative import, which importlib takes for its own affair
        raise LookupError(f"there is no objective {name!r}")
    dotted = name if "." in name else f"{__name__}.{name}"
    try:
        module = importlib.import_module(dotted)
    except ModuleNotFoundError as error:
        if error.name and (dotted == error.name or dotted.startswith(error.name + ".")):
            raise LookupError(f"there is no objective {name!r}") from None
        raise
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Objective) and value.__module__ == module.__name__
    ]
    if len(found) != 1 or not dataclasses.is_dataclass(found[0]):
        raise LookupError(f"{dotted} defines {len(found)} objectives, it must define exactly one")
    return found[0]
