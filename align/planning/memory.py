"""Bytes of a device by part, at the fullest moment of a run.

What lasts (weights, gradients, optimiser state, references) is counted; what passes is traced on a model without
weights (`align.planning.tracing`), at the largest micro-batch of each kind and at the largest held-out one. On a CPU
it has been compared with the measured peak (`benchmarks/plan.py`); on a GPU it has not been checked.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from align import models
from align.data.collate import MicroBatch
from align.data.layout import NONE, PACKED, PADDED
from align.data.load import HeldOutSet
from align.data.share import share_out
from align.data.steps import Steps
from align.job.policy import weights_type, with_adapters
from align.planning import sharding
from align.planning.sharding import FP32, Weights, Zero
from align.planning.tracing import ACTIVATIONS, GRADIENTS, HEAD, EmptyModel, LiveBytes, stand_in
from align.planning.volume import Volume
from align.recipe import Recipe
from align.reference import ADAPTER_OFF, FROZEN
from align.scoring import recompute, support
from align.scoring.products import TILE
from align.view import Scorer

CPU, CUDA = "cpu", "cuda"
TRAINING, MEASURING, SAMPLING = "training", "measuring", "sampling"
CONTEXT = 700_000_000  # of a CUDA device: context, kernels, workspaces of its libraries; not measured by us
# What an allocator holds beside what is asked of it: holes between tensors, as a share of what passes. glibc (2.36) can
# rarely give a tensor the place of a freed one of the same size: aligning needs some bytes more, and small objects
# settle in what that leaves. Measured with `benchmarks/plan.py`; with mapped blocks in place of the heap it would be
# near 0, at 30 % more processor time.
HOLES = {CPU: 1.2, CUDA: 0.1}


@dataclass(frozen=True)
class Setting:
    """Where a run is planned for."""

    device: str  # cpu | cuda
    ranks: int
    zero: Zero
    bf16: bool
    memory: int | None = None  # bytes of a device; None: nobody has said

    @property
    def autocast(self) -> bool:
        """Whether products are cast as they come; DeepSpeed casts the weights themselves."""
        return self.bf16 and self.zero.stage == 0


@dataclass(frozen=True)
class Memory:
    """Bytes of a device."""

    lasting: dict[str, int]  # by part, through the whole run
    passing: dict[str, dict[str, int]]  # moment -> part -> bytes beside those
    held: dict[str, int]  # by the process or the CUDA context

    @property
    def fullest(self) -> str:
        return max(self.passing, key=self.at)

    def at(self, moment: str) -> int:
        return sum(self.lasting.values()) + sum(self.passing[moment].values()) + sum(self.held.values())

    @property
    def total(self) -> int:
        return self.at(self.fullest)

    def parts(self) -> dict[str, int]:
        """By part, at the fullest moment; without what takes nothing."""
        found = {**self.lasting, **self.passing[self.fullest], **self.held}
        return {name: size for name, size in found.items() if size}


class Footprint:
    """What a recipe's policy takes on a device."""

    def __init__(self, recipe: Recipe, setting: Setting, *, layout: str, process: int):
        """`process`: bytes of an interpreter with the libraries and the rows of a run, on a CPU."""
        self.recipe, self.setting, self.process = recipe, setting, process
        self.objective = recipe.build_objective()
        policy = with_adapters(recipe, models.empty_model(recipe.model, dtype=weights_type(recipe, setting.bf16)))
        policy.to("meta")  # of several adapters all but the first are made on the CPU
        self.weights = weights_of(policy)
        if setting.bf16 and setting.zero.stage:
            policy.to(torch.bfloat16)
        recompute.prepare(policy)
        reason = support.use_packed(policy, recipe.data.max_length, has_weights=False) if layout == PACKED else None
        self.layout = PADDED if reason else layout
        self.model = EmptyModel(policy, bf16=setting.autocast)
        self.config = policy.config.get_text_config()

    def memory(self, volume: Volume, steps: Steps, held_out: Sequence[HeldOutSet]) -> Memory:
        """Bytes at each moment of a run with these steps."""
        setting, bf16 = self.setting, self.setting.bf16
        optimiser = sharding.OPTIMISER_BYTES.get(self.recipe.train.hf.get("optim", "adamw_torch"), 8)
        lasting = sharding.states(self.weights, setting.zero, setting.ranks, bf16=bf16, optimiser=optimiser)
        lasting["reference"] = sum(self._reference(name) for name in self._references())
        lasting["teacher"] = self._reference(FROZEN) if "teacher" in self.objective.needs else 0
        lasting["running means"] = self.weights.trained * FP32 * len(getattr(self.objective, "ema_decays", ()))
        batch = _largest_held_out(held_out, steps)
        if setting.device == CPU:  # of a GPU's run they lie in host memory
            positions = sum(len(row.ids) for one in held_out for each in one.rows for row in each.responses)
            lasting["kept hidden states"] = positions * self.config.hidden_size * FP32 // setting.ranks
        passing = {TRAINING: self._training(volume, steps, lasting)}
        if batch is not None:
            passing[MEASURING] = self._measuring(batch)
        if "samples" in self.objective.needs:
            passing[SAMPLING] = self._sampling(volume)
        return Memory(lasting, {moment: self._with_holes(parts) for moment, parts in passing.items()}, self._held())

    def _training(self, volume: Volume, steps: Steps, lasting: dict[str, int]) -> dict[str, int]:
        """Of the largest micro-batch. Gradients are counted as lasting: nothing is left of them where less is alive."""
        accumulates, found = volume.most_micro_batches > 1, []
        teacher = stand_in(self.objective, self.model.policy)
        scorer = Scorer(self.objective, None, None, self.recipe.train.seed, teacher)
        for one in volume.heaviest():
            live = self.model.train(steps.collate(list(one.rows), one.recompute), scorer, accumulates=accumulates)
            found.append(self._passing(live, lasting["gradients"]))
        return max(found, key=lambda parts: sum(parts.values()))

    def _passing(self, live: LiveBytes, gradients: int) -> dict[str, int]:
        parts = Counter({ACTIVATIONS: live.peak[ACTIVATIONS], HEAD: live.peak[HEAD]})
        if self.setting.zero.stage == 0:  # a single micro-batch is at its fullest before all gradients are there
            missing = gradients - live.peak[GRADIENTS]
            parts[ACTIVATIONS] -= min(missing, parts[ACTIVATIONS])
        if self.setting.device == CUDA:
            parts[HEAD] += TILE[CUDA][0] * min(TILE[CUDA][1], self.config.vocab_size) * FP32
        return dict(parts)

    def _measuring(self, batch: MicroBatch) -> dict[str, int]:
        has_kl = self.recipe.model.adapter is not None or self.recipe.reference.policy is not None
        return {"logits and hidden states": self.model.measure(batch, has_kl=has_kl).most_passing}

    def _sampling(self, volume: Volume) -> dict[str, int]:
        """Keys and values of a call's samples, and their logits: as they are, warped, sorted and summed."""
        options, config = self.recipe.sampling, self.config
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        prompt = max(len(row.prompt_ids) for one in volume.micro_batches for row in one.rows)
        answers = max(1, options.batch_size // options.k) * options.k
        tokens = answers * (prompt + options.max_new_tokens)
        kept = 2 * config.num_hidden_layers * heads * width * (2 if self.setting.bf16 else FP32)
        return {"keys and values": tokens * kept, "logits": 6 * answers * config.vocab_size * FP32}

    def _with_holes(self, parts: dict[str, int]) -> dict[str, int]:
        return {**parts, "holes between them": round(HOLES[self.setting.device] * sum(parts.values()))}

    def _held(self) -> dict[str, int]:
        return {"process": self.process} if self.setting.device == CPU else {"CUDA context": CONTEXT}

    def _references(self) -> set[str]:
        """Models beside the policy; a frozen copy is there where its log-probs are not all stored."""
        named = self.recipe.reference
        return {named.policy, named.samples, named.behavior} - {None, ADAPTER_OFF}

    def _reference(self, name: str) -> int:
        """Bytes of a reference model on a device."""
        dtype, zero = weights_type(self.recipe, self.setting.bf16), self.setting.zero
        path = self.recipe.model.path if name == FROZEN else name
        model = models.empty_model(dataclasses.replace(self.recipe.model, path=path), dtype=dtype)
        total = weights_of(model)
        each = dtype.itemsize if zero.stage < 3 or not self.setting.bf16 else 2
        if zero.stage < 3:
            return (total.trained + total.frozen) * each
        return -(-total.total * each // self.setting.ranks) + min(total.total, Zero().max_live_parameters) * each


def weights_of(policy: nn.Module) -> Weights:
    """Counts the weights of a policy; tied ones once."""
    trained, frozen = [], []
    for weight in policy.parameters():
        (trained if weight.requires_grad else frozen).append(weight)
    return Weights(*(sum(one.numel() for one in group) for group in (trained, frozen)),
                   *(sum(one.numel() * one.itemsize for one in group) for group in (trained, frozen)))  # fmt: skip


def _largest_held_out(held_out: Sequence[HeldOutSet], steps: Steps) -> MicroBatch | None:
    """The micro-batch of the most response tokens that is measured on; None if nothing is."""
    groups = []
    for one in held_out:
        options = {"tokens_per_device": steps.tokens_per_device, "layout": steps.layout}
        groups += [group for share in share_out(one.rows, world=steps.world, **options) for group in share if group]
    if not groups:
        return None
    return steps.collate(max(groups, key=lambda rows: sum(len(one.ids) for row in rows for one in row.responses)), NONE)
