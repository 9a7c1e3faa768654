"""The contract between an objective and the rest of the program, on one page.

An objective is a frozen dataclass in a file of its own. Its fields are its hyper-parameters, declared with
`align.schema.option`. It is called on a `Batch` of log-probs and returns unreduced `Losses`; the trainer sums
them and divides by the number of units (`_units`) in the whole optimiser step over all ranks (`role_token`: the tokens
of each role by their own number), so micro-batch size, accumulation and world size cannot change the result. It never
sees model, tokenizer, accelerator or recipe.

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

UNITS = ("token", "role_token", "response", "positive", "negative", "pair", "prompt")

# What an objective may ask of the rest of the program, and who can supply it. Responses of a role that no need
# names are not even forwarded.
NEEDS = {
    "reference": "log-probs under a reference (the section `reference`)",
    "positives": "a positive response to each prompt (the rows)",
    "negatives": "a negative response to each prompt (the rows)",
    "responses": "a positive or a negative response to each prompt (the rows)",
    "pairs": "a positive and a negative response to each prompt (the rows)",
    "samples": "samples of the policy's own (the section `sampling`)",
    "rewards": "a reward for each response (`reward` in the rows)",
    "behavior": "log-probs under who wrote a response (`behavior_logps` in the rows, or `reference.behavior`)",
    "mismatched": "log-ratios of responses to another prompt of the step (the trainer scores them)",
    "ema": "log-probs under running means of the policy's weights (the trainer keeps them)",
    "heads": "an adapter of its own for each role (the section `model.adapter`)",
    "teacher": "the next-token distributions of a head trained on negatives (`reference.teacher`)",
}

ROLES_OF_NEEDS = {
    "positives": {POSITIVE},
    "negatives": {NEGATIVE},
    "responses": {POSITIVE, NEGATIVE},
    "pairs": {POSITIVE, NEGATIVE},
    "samples": {SAMPLE},
}

# What else the pass through the LM head can tell of each response token (`Objective.extras`), (N, T) each.
EXTRAS = {
    "entropy": "entropy of the policy's distribution in nats (NSR's bonus)",
    "concentration": "log of the sum over the vocabulary of the squared probabilities, without gradient (WPO)",
    "alternatives": "log-prob of another likely token drawn in the response token's place (CRINGE)",
    "repeats": "sum over the distinct earlier tokens c, the target left out, of -log(1 - p(c)) (unlikelihood)",
    "soft_unlikelihood": "sum over the vocabulary of the teacher's p times -log(1 - p) (negative distillation)",
}


def lift(values: Tensor) -> Tensor:
    """`values` in float32 where they are of a smaller type: nothing is summed or exponentiated in half precision."""
    return values.float() if values.dtype.itemsize < 4 else values


@dataclass(frozen=True)
class WholeStep:
    """What couples the losses of an optimiser step: values of all its micro-batches on all ranks."""

    values: dict[str, Tensor]  # name -> (K,) what `Objective.collect` returned, joined over the whole step
    first: dict[str, int] = field(default_factory=dict)  # name -> where the values of this micro-batch begin
    memory: dict[str, float] = field(default_factory=dict)  # what `Objective.remember` returned, this step included

    def to(self, device: torch.device) -> WholeStep:
        return dataclasses.replace(self, values={name: values.to(device) for name, values in self.values.items()})


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
    token_weight: Tensor | None = None  # (N, T) weights of single tokens (of judged steps); None means 1
    ema_logps: Tensor | None = None  # (M, N, T) under M running means of the policy, without gradient
    extras: dict[str, Tensor] = field(default_factory=dict)  # name -> (N, T), see EXTRAS
    step: WholeStep | None = None  # None: this batch is the whole step, and the first one
    progress: float = 0.0  # share of the run's optimiser steps that are done

    def __post_init__(self) -> None:
        n, t = self.logps.shape
        assert self.mask.shape == (n, t) and self.mask.dtype == torch.bool, "mask is (N, T) bool"
        assert self.role.shape == self.prompt.shape == (n,), "role and prompt are (N,)"
        assert self.pairs.ndim == 2 and self.pairs.shape[1] == 2, "pairs is (P, 2)"
        for name in ("ref_logps", "behavior_logps", "step_label", "token_weight"):
            value = getattr(self, name)
            assert value is None or value.shape == (n, t), f"{name} is (N, T)"
        assert all(value.shape == (n, t) for value in self.extras.values()), "extras are (N, T)"
        assert self.ema_logps is None or self.ema_logps.shape[1:] == (n, t), "ema_logps is (M, N, T)"
        for name in ("reward", "weight"):
            value = getattr(self, name)
            assert value is None or value.shape == (n,), f"{name} is (N,)"

    def over_tokens(self, values: Tensor) -> Tensor:
        """(..., N) the sum of `values` (..., N, T) over the tokens of each response, each times its `token_weight`.

        Every sum over tokens goes through here, so that weights of steps reach every objective.
        """
        weight = self.mask if self.token_weight is None else self.mask * self.token_weight
        return (torch.where(self.mask, lift(values), 0.0) * weight).sum(-1)

    def lengths(self) -> Tensor:
        """(N,) number of tokens of each response, whatever they weigh."""
        return self.mask.sum(-1)

    def sums(self) -> Tensor:
        """(N,) log-prob of each whole response in nats: the sum over its tokens."""
        return self.over_tokens(self.logps)

    def means(self) -> Tensor:
        """(N,) mean log-prob a token of each response, in nats."""
        return self.sums() / self.lengths()

    def token_log_ratios(self) -> Tensor:
        """(N, T) log-prob of each token under the policy minus under the reference, in nats."""
        assert self.ref_logps is not None, "the objective must list 'reference' in `needs`"
        return lift(self.logps) - lift(self.ref_logps)

    def log_ratios(self) -> Tensor:
        """(N,) log-prob of each response under the policy minus under the reference, in nats."""
        return self.over_tokens(self.token_log_ratios())

    def rewards(self) -> Tensor:
        """(N,) the reward of each response; where the rows give none, its role: 1 or -1."""
        return self.role.to(torch.float32) if self.reward is None else self.reward


@dataclass(frozen=True)
class Losses:
    """What an objective returns: nothing is reduced, the trainer does that."""

    losses: Tensor  # (U,) one per unit of `normalize_by`, in the order of the units in the batch
    metrics: dict[str, Tensor] = field(default_factory=dict)  # name -> (any number,) real items only, detached


@dataclass(frozen=True)
class Objective:
    """Base of all objectives: `needs`, `normalize_by` and `__call__(batch) -> Losses`.

    Methods whose losses depend on the whole optimiser step override `collect`: the trainer then looks at all
    micro-batches first, without gradient, and hands what it found to each of them as `Batch.step`. So the result
    does not depend on how a step is cut.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    normalize_by: ClassVar[str] = "prompt"

    def __call__(self, batch: Batch) -> Losses:
        raise NotImplementedError

    @property
    def has_stop_gradient(self) -> bool:
        """Whether, by design and under the options that are set, the gradient is not the derivative of the value."""
        return False

    @property
    def extras(self) -> tuple[str, ...]:
        """What of EXTRAS must be in `Batch.extras`, under the options that are set."""
        return ()

    @property
    def num_alternatives(self) -> int:
        """From how many of the likeliest tokens the extra "alternatives" is drawn; for objectives that ask for it."""
        raise NotImplementedError

    @property
    def ema_decays(self) -> tuple[float, ...]:
        """The decays of the M running means of the policy that the need "ema" asks for."""
        return ()

    @property
    def adapters(self) -> dict[int, str]:
        """role -> the adapter that scores its responses, for the need "heads"; those of other roles the base scores."""
        return {}

    @property
    def coupled(self) -> bool:
        """Whether `collect` has anything to say, under the options that are set."""
        return type(self).collect is not Objective.collect

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        """name -> (any number,) detached values of this micro-batch that the losses of all others depend on."""
        return {}

    def remember(self, memory: dict[str, float], values: dict[str, Tensor]) -> dict[str, float]:
        """What is carried from step to step: the new memory, from the old one ({} at first) and a step's values."""
        return {}

    def whole_step(self, batch: Batch) -> WholeStep:
        """`batch.step`; without one the batch is the whole step, and the first one of a run."""
        if batch.step is not None:
            return batch.step
        values = self.collect(batch)
        return WholeStep(values, dict.fromkeys(values, 0), self.remember({}, values))

    def roles(self) -> set[int]:
        """The roles whose responses the objective reads; others need not be forwarded."""
        return roles_of(self.needs)


def roles_of(needs: tuple[str, ...]) -> set[int]:
    """The roles whose responses an objective with these needs may read."""
    return set().union(*(ROLES_OF_NEEDS.get(need, set()) for need in needs))


def join_step(
    objective: Objective, parts: list[dict[str, Tensor]], memory: dict[str, float]
) -> tuple[list[WholeStep], dict[str, float]]:
    """(one WholeStep for each micro-batch of `parts`, the new memory).

    `parts` are what `collect` returned for every micro-batch of the step on every rank, in the same order everywhere.
    """
    names = list(dict.fromkeys(name for part in parts for name in part))
    values = {name: torch.cat([part[name] for part in parts if name in part]) for name in names}
    memory = objective.remember(memory, values)
    steps, first = [], dict.fromkeys(names, 0)
    for part in parts:
        steps.append(WholeStep(values, dict(first), memory))
        first = {name: start + len(part.get(name, ())) for name, start in first.items()}
    return steps, memory


def available() -> list[str]:
    """The names of the objectives that ship with the project: the files of this folder, helpers (`_...`) left out."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


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
