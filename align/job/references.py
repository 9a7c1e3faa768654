"""The references of a recipe: which models they need, and the stores in front of them."""

from __future__ import annotations

import dataclasses
import os

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled

from align import models
from align.data.layout import PACKED
from align.errors import UserError, shorten
from align.job.parts import say
from align.likelihood_ratio import read_description
from align.objectives import NEGATIVE, Objective
from align.objectives.likra import HEADS
from align.recipe import Model, Recipe, Reference
from align.reference import ADAPTER_OFF, FROZEN, References, freeze
from align.reference.store import STORE_OFF, Store, identity, store_folder
from align.reference.teacher import Teacher
from align.run import find_heads
from align.scoring import support
from align.scoring.head import causal_lm


def load_start(
    recipe: Recipe, policy: nn.Module, args: TrainingArguments, layout: str, *, is_new: bool
) -> tuple[str | None, References | None]:
    """(the hash of the policy's weights without adapter, the references of the recipe); None for what is not needed.

    The hash takes a pass over all weights: it is for `environment.json` where a run begins, and for the store.
    """
    has_reference = bool(recipe.reference.policy or recipe.reference.behavior)
    is_hashed = is_new or (has_reference and recipe.reference.store != STORE_OFF)
    start_hash = models.weights_hash(causal_lm(policy)) if is_hashed else None
    references = load_references(recipe, policy, args, start_hash, layout) if has_reference else None
    for store in set(references.stores.values()) if references else ():
        say(f"reference log-probs: {shorten(str(store.folder), 160)}, {store.num_entries:,} responses there")
    return start_hash, references


def load_references(
    recipe: Recipe, policy: nn.Module, args: TrainingArguments, start_hash: str | None, layout: str
) -> References:
    """The models that references need beside the policy itself, and the stores.

    `start_hash` is `weights_hash` of the policy's weights without adapter; None only with the store off. `layout` is
    that of the micro-batches. A frozen copy is loaded when something is first missing in its store, which may be
    never; under ZeRO-3 at once, since sharding a model is no business of the middle of a step.
    """
    reference, has_store = recipe.reference, recipe.reference.store != STORE_OFF
    names = {reference.policy, reference.samples, reference.behavior} - {None}
    dtype, loaded, hashes = policy.dtype, {}, {ADAPTER_OFF: start_hash, FROZEN: start_hash}
    configs = dict.fromkeys((ADAPTER_OFF, FROZEN), causal_lm(policy).config)

    def load_later(name: str) -> nn.Module:
        model = _load(recipe, name, dtype)
        if models.weights_hash(model) != start_hash:
            what = f"{shorten(recipe.model.path)} is not what the run began with any more"
            raise UserError("model.path", what, "leave a model's files alone while it trains")
        return _ready(model, recipe, name, args, layout)

    for name in sorted(names - {ADAPTER_OFF}):
        if name != FROZEN:
            model = _load(recipe, name, dtype)
            if model.config.vocab_size != policy.config.vocab_size:
                what = f"{shorten(name)} has {model.config.vocab_size} words, the policy {policy.config.vocab_size}"
                raise UserError("reference", what, "a reference must share the policy's tokenizer")
            hashes[name], configs[name] = models.weights_hash(model) if has_store else None, model.config
            loaded[name] = _ready(model, recipe, name, args, layout)
        elif is_deepspeed_zero3_enabled() or not has_store:
            loaded[name] = _ready(_load(recipe, name, dtype), recipe, name, args, layout)
    who = {name: identity(hashes[name], configs[name].to_dict(), _arithmetic(args)) for name in names if has_store}
    stores = {one: _open(reference, one) for one in sorted(set(who.values()))}
    return References(
        reference.policy, reference.samples, loaded, behavior=reference.behavior, load=load_later,
        stores={name: stores[one] for name, one in who.items()}, equal_calls=is_deepspeed_zero3_enabled(),
        hashes={name: hashes[name] for name in sorted(names)},
    )  # fmt: skip


def load_teacher(
    recipe: Recipe, objective: Objective, policy: nn.Module, args: TrainingArguments, layout: str
) -> Teacher | None:
    """The frozen model whose distributions the objective asks for. Raises UserError if there is none that fits."""
    if "teacher" not in objective.needs:
        return None
    name, where = recipe.reference.teacher, "reference.teacher"
    train_one = "train one: accelerate launch align/train.py recipes/likra.yaml objective.heads=negative"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        what = "a negative teacher has never been tried under DeepSpeed"
        raise UserError("accelerate", what, "use DDP (launch/ddp.yaml), or another objective")
    if name is None:
        raise UserError(where, "names no negative teacher", train_one)
    try:
        model = _negative_head(recipe, name).to(policy.dtype)
    except UserError as error:
        raise UserError(where, f"{shorten(name)}: {error.what}", train_one) from None
    if model.config.vocab_size != policy.config.vocab_size:
        what = f"{shorten(name)} has {model.config.vocab_size} words, the policy {policy.config.vocab_size}"
        raise UserError(where, what, "a teacher must share the policy's tokenizer")
    return Teacher(_ready(freeze(model), recipe, name, args, layout))


def _negative_head(recipe: Recipe, name: str) -> nn.Module:
    """The negative head of a run, its adapter added to its base; or the model of that path."""
    described = find_heads(name)
    if described is None:
        return _load(recipe, name, torch.float32)
    given, head = read_description(described), HEADS[NEGATIVE]
    if head not in given["heads"]:
        raise UserError(name, "was trained without a negative head", "")
    return models.load_merged(Model(**given["model"]), described.parent / head)


def _open(reference: Reference, identity: str) -> Store:
    folder, rank = store_folder(reference.store), PartialState().process_index
    return Store(folder, identity, dtype=reference.store_dtype, rank=rank)


def _load(recipe: Recipe, name: str, dtype: torch.dtype) -> nn.Module:
    path = recipe.model.path if name == FROZEN else name
    return freeze(models.load_model(dataclasses.replace(recipe.model, path=path, adapter=None), dtype=dtype))


def _arithmetic(args: TrainingArguments) -> str:
    if args.bf16:
        return "bf16"
    return "tf32" if args.tf32 else "fp32"


def _ready(model: nn.Module, recipe: Recipe, name: str, args: TrainingArguments, layout: str) -> nn.Module:
    reason = support.use_packed(model, recipe.data.max_length) if layout == PACKED else None
    if reason:
        raise UserError("reference", f"{shorten(name)} cannot be packed: {shorten(reason, 160)}", "data.layout: padded")
    return _on_device(model, args)


def _on_device(model: nn.Module, args: TrainingArguments) -> nn.Module:
    """Where a frozen model computes: this rank's device, or sharded over all ranks under ZeRO-3."""
    if not is_deepspeed_zero3_enabled():
        return model.to(args.device)
    import deepspeed

    config = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 3}, "bf16": {"enabled": args.bf16}}
    engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()  # unlike a module's, DeepSpeed's returns nothing
    return engine
