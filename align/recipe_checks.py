"""Checks of a recipe across its fields: what is named exists, and what is set is used by something.

They also run on a recipe that has other mistakes (see `Reader.section`), so that all are told at once.
"""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

from align import adapter_heads, objectives
from align.data import sources, supply
from align.errors import UserError, shorten
from align.guard import checks as guard_checks
from align.models import check_path
from align.negatives import checks as negative_checks
from align.negatives import mining_checks
from align.rollouts import checks as rollout_checks
from align.run import find_heads
from align.schema import Reader, near_miss

if TYPE_CHECKING:
    from align.recipe import Recipe

# section -> the needs of the objective it is for
SECTION_NEEDS = {"reference": {"reference", "behavior", "teacher"}, "sampling": {"samples"}}

# TrainingArguments that a recipe says elsewhere: field -> where.
OWNED_BY_RECIPE = {
    "output_dir": "output", "learning_rate": "train.learning_rate", "num_train_epochs": "train.epochs",
    "max_steps": "train.max_steps", "seed": "train.seed", "data_seed": "train.seed", "save_steps": "train.save_every",
    "save_strategy": "train.save_every", "bf16": "train.precision", "fp16": "train.precision",
    "per_device_train_batch_size": "train.tokens_per_device", "gradient_accumulation_steps": "train.tokens_per_device",
    "auto_find_batch_size": "train.tokens_per_device", "eval_steps": "eval.every", "eval_strategy": "eval.every",
    "resume_from_checkpoint": "train.resume", "run_name": "name", "label_smoothing_factor": "objective.label_smoothing",
    "gradient_checkpointing": "train.recompute", "gradient_checkpointing_kwargs": "train.recompute",
    "activation_checkpointing": "train.recompute", "activation_checkpointing_kwargs": "train.recompute",
    "deepspeed": "accelerate launch --use_deepspeed --deepspeed_config_file",
}  # fmt: skip

# TrainingArguments that must not change: field -> why.
_LOOP = "this trainer decides it"
FIXED = {
    "logging_nan_inf_filter": "it is always off: a non-finite loss stops the run",
    "logging_steps": "every step is logged", "logging_strategy": "every step is logged",
    "disable_tqdm": "the trainer shows its own progress",
    "include_num_input_tokens_seen": "metrics.jsonl has the tokens of every step",
    "eval_on_start": "the held-out rows are always measured before and after",
    "load_best_model_at_end": "the end of the run is what is kept",
    "use_cpu": "a GPU is used where there is one; CUDA_VISIBLE_DEVICES= hides it",
    "fsdp": "FSDP has not been tried yet", "fsdp_config": "FSDP has not been tried yet",
    "average_tokens_across_devices": "losses are always divided by the units of the whole step",
    "remove_unused_columns": _LOOP, "prediction_loss_only": _LOOP, "label_names": _LOOP, "ignore_data_skip": _LOOP,
    "save_safetensors": "weights are always safetensors", "group_by_length": _LOOP, "train_sampling_strategy": _LOOP,
}  # fmt: skip


def check(reader: Reader, recipe: Recipe, needs: tuple[str, ...], roles: set[int], data: dict) -> None:
    """Adds to `reader` what is wrong between fields and with what they name.

    `needs` are those of the objective; all of them where it is unknown, so that nothing is refused as unused. `roles`
    are those that it reads.
    `data` is what the user wrote: only that is checked, since defaults are sound and have no line of their own.
    """
    _source_checks(reader, recipe, data)
    _reference_checks(reader, recipe, needs, data)
    _role_checks(reader, recipe, needs, roles, data)
    _head_checks(reader, recipe, needs, data)
    _adapter_checks(reader, recipe)
    _feed_checks(reader, recipe, needs, data)
    guard_checks.check(reader, recipe, needs, roles)
    rollout_checks.check(reader, recipe, needs)
    mining_checks.check(reader, recipe)
    negative_checks.check(reader, recipe, data)
    if "samples" not in needs and data.get("sampling") and not recipe.samples_ahead:
        what = f"objective {recipe.objective['name']!r} uses no samples"
        reader.fail(("sampling",), what, "leave the section out")
    problem = check_path(recipe.model.path)
    if problem:
        reader.fail(("model", "path"), *problem)
    _hf_checks(reader, recipe.train.hf)
    if not reader.errors:  # rows are looked at only where the rest is sound
        _supply_checks(reader, recipe, needs, roles)


def _source_checks(reader: Reader, recipe: Recipe, data: dict) -> None:
    # An empty file is told only what every recipe must write out itself.
    if data and not recipe.data.sources and reader.sound(("data", "sources")):
        reader.fail(("data", "sources"), "names no data", "give a file, a hub id or builtin:unwanted")
    named = {("data", "sources"): recipe.data.sources, ("retain", "sources"): recipe.retain.sources,
             ("eval", "sources"): recipe.eval.sources or [], ("guard", "sources"): recipe.guard.sources,
             ("guard", "anchors"): recipe.guard.anchors}  # fmt: skip
    for at, items in named.items():
        for index, source in enumerate(items):
            problem = sources.check(source.path, source.split) if source.path is not None else None
            if problem:
                is_known = source.path in {sources.BUILTIN + name for name in sources.builtin_names()}
                key = "split" if is_known else "path"  # all that can be wrong with a builtin that exists
                reader.fail((*at, index, key), *problem)


def _reference_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...], data: dict) -> None:
    name = (recipe.objective or {}).get("name", "")
    if not SECTION_NEEDS["reference"] & set(needs):
        if data.get("reference"):
            reader.fail(("reference",), f"objective {name!r} uses none", "leave the section out")
        return
    for key, wanted, what in (
        ("policy", {"reference"}, "compares with no reference"),
        ("samples", {"reference", "samples"}, "uses no samples"),
        ("behavior", {"behavior"}, "does not ask who wrote the responses"),
        ("teacher", {"teacher"}, "learns from no teacher"),
    ):
        if getattr(recipe.reference, key) is not None and not wanted <= set(needs):
            reader.fail(("reference", key), f"objective {name!r} {what}", "leave it out")
            return
    for key in ("policy", "samples", "behavior"):
        who = getattr(recipe.reference, key)
        if who == "adapter_off" and recipe.model.adapter is None and reader.sound(("model", "adapter")):
            fix = "use frozen, or train a LoRA adapter (model.adapter)"
            reader.fail(("reference", key), "adapter_off, but no adapter is trained", fix)
        elif who not in ("adapter_off", "frozen", None):
            problem = check_path(who)
            is_word = not any(mark in who for mark in "./~")
            typo = near_miss(who, ("adapter_off", "frozen")) if problem and is_word else ""
            if typo:
                reader.fail(("reference", key), f"{shorten(who)} is no reference and no model", typo)
            elif problem:
                reader.fail(("reference", key), *problem)
    _teacher_checks(reader, recipe, needs)
    _store_checks(reader, recipe, needs, data)


def _teacher_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...]) -> None:
    """Where an objective asks for a teacher there is one: a run with a negative head, or a model."""
    teacher = recipe.reference.teacher
    if teacher is None:
        if "teacher" in needs and set(needs) != set(objectives.NEEDS) and reader.sound(("reference", "teacher")):
            what = f"objective {recipe.objective['name']!r} learns from a negative teacher, but none is named"
            reader.fail(("reference", "teacher"), what, "name a run of likra, or a model trained on negatives")
        return
    problem = None if find_heads(teacher) else check_path(teacher)
    if problem:
        reader.fail(("reference", "teacher"), problem[0], "name a finished run of likra, or a model")


def _store_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...], data: dict) -> None:
    reference = recipe.reference
    if "reference" not in needs and reference.behavior is None:
        for key in ("store", "store_dtype"):
            if key in (data.get("reference") or {}):
                reader.fail(("reference", key), "there is no reference to store", "leave it out")
        return
    if reference.store == "off" and reference.store_dtype != "float32":
        reader.fail(("reference", "store_dtype"), "types a store that is off", "leave it out")
    if reference.store in ("auto", "off"):
        return
    folder = Path(reference.store).expanduser()
    is_word = not any(mark in reference.store for mark in "./~")
    typo = near_miss(reference.store, ("auto", "off")) if is_word and not folder.is_dir() else ""
    if typo:
        reader.fail(("reference", "store"), f"{shorten(reference.store)} is no folder", typo)
    elif not reference.store or (folder.exists() and not folder.is_dir()):
        reader.fail(("reference", "store"), f"{shorten(reference.store)!r} is not a folder", "auto, off or a folder")


def _role_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...], roles: set[int], data: dict) -> None:
    """What is said of retain rows, weights and NAT's prompts is used by something."""
    names_none = not recipe.retain.sources and not recipe.retain.positives
    if data.get("retain") and names_none and reader.sound(("retain",)):
        reader.fail(("retain",), "names neither sources nor positives", "give retain.sources, or leave it out")
    nat = recipe.data.nat
    if nat is not None and nat.grades and (nat.success, nat.failure) != (type(nat)().success, type(nat)().failure):
        reader.fail(("data", "nat"), "gives grades beside success and failure", "give one of the two")
    if set(needs) == set(objectives.NEEDS):
        return  # nobody knows which roles the objective reads
    name = recipe.objective["name"]
    if nat is not None and objectives.NEGATIVE in roles:
        what = f"every response becomes a positive, but objective {name!r} reads negatives"
        reader.fail(("data", "nat"), what, "use the objective nll, or leave data.nat out")
        return
    for key, role in (("positive", objectives.POSITIVE), ("negative", objectives.NEGATIVE)):
        if getattr(recipe.weights, key) != 1.0 and role not in roles:
            reader.fail(("weights", key), f"objective {name!r} reads no {key}s", "leave it out")


def _head_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...], data: dict) -> None:
    """Adapters of their own for each role: what has never been tried with them is refused."""
    if "heads" not in needs or set(needs) == set(objectives.NEEDS):
        return
    name = recipe.objective["name"]
    if recipe.model.adapter is None and reader.sound(("model", "adapter")):
        what = f"objective {name!r} trains an adapter for each role, but there is none"
        reader.fail(("model", "adapter"), what, "model.adapter: {rank: 8}, for example")
    if data.get("retain"):
        what = f"a retain term has never been tried with objective {name!r}: each head learns from its own role"
        reader.fail(("retain",), what, "leave it out, or give those rows as positives")
    if recipe.data.nat is not None:
        reader.fail(("data", "nat"), f"has never been tried with objective {name!r}", "use the objective nll")


def _adapter_checks(reader: Reader, recipe: Recipe) -> None:
    """An adapter on single attention heads: their names, and nothing beside them."""
    adapter, at = recipe.model.adapter, ("model", "adapter")
    if adapter is None or not adapter.heads or not reader.sound(at):
        return
    if adapter.targets != "all-linear":
        reader.fail((*at, "targets"), "names modules beside model.adapter.heads", "leave one of them out")
    try:
        adapter_heads.parse(adapter.heads)
    except UserError as error:
        reader.fail((*at, "heads"), error.what, error.fix)


def _feed_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...], data: dict) -> None:
    """Whether rows can be mixed and streamed as the recipe says."""
    if recipe.data.mix is not None and (recipe.data.nat is not None or "responses" not in needs):
        what = "mixes prompts with positives and prompts with negatives, but "
        what += "data.nat" if recipe.data.nat is not None else f"objective {recipe.objective['name']!r}"
        reader.fail(("data", "mix"), f"{what} does not take single responses of either role", "leave it out")
    if recipe.data.streaming == "never" and (data.get("data") or {}).get("shuffle_buffer") is not None:
        reader.fail(("data", "shuffle_buffer"), "is for rows that are streamed", "leave it out")
    if recipe.data.streaming == "always" and "samples" in needs and not recipe.sampling.every:
        if set(needs) != set(objectives.NEEDS):
            fix = "draw as the run goes on: sampling.every=N"
            reader.fail(("data", "streaming"), "samples cannot be drawn at the start for rows that are streamed", fix)


def _supply_checks(reader: Reader, recipe: Recipe, needs: tuple[str, ...], roles: set[int]) -> None:
    """Whether the rows can supply what the objective needs, as far as a look at the first ones tells."""
    if set(needs) == set(objectives.NEEDS) or recipe.samples_ahead or recipe.mining is not None:
        return  # nobody knows what the objective needs, or the rows are yet to be sampled or chosen
    asked = set(needs) - ({"behavior"} if recipe.reference.behavior else set())
    if "heads" in needs:  # each head must have something to learn from
        asked |= {name for name in ("positives", "negatives") if objectives.ROLES_OF_NEEDS[name] <= roles}
    if recipe.data.nat is not None:
        asked = {"responses"} | ({"rewards"} if recipe.data.nat.grades else set())
    weights = recipe.weights
    if (weights.contradicting_steps, weights.unjudged_steps) != (1.0, 1.0):
        asked.add("steps")
    for need, count in supply.lacking([(source.path, source.split) for source in recipe.data.sources], asked).items():
        if need == "steps":
            what, fix = "weights weigh steps", "give rows with judged `steps`, or leave those weights out"
        elif recipe.data.nat is not None:
            what, fix = f"data.nat needs {need}", objectives.NEEDS[need]
        else:
            what, fix = f"objective {recipe.objective['name']!r} needs {need}", objectives.NEEDS[need]
        reader.fail(("data", "sources"), f"{what}, but none of the first {count} rows can supply it", fix)


def _hf_checks(reader: Reader, hf: dict) -> None:
    if not hf:
        return
    known = training_argument_names()
    for key in hf:
        if key in OWNED_BY_RECIPE:
            reader.fail(("train", "hf", key), "is not set here", f"say it at {OWNED_BY_RECIPE[key]}")
        elif key in FIXED:
            reader.fail(("train", "hf", key), "cannot be set", FIXED[key])
        elif key not in known:
            fix = near_miss(key, known) or "see its documentation"
            reader.fail(("train", "hf", key), "transformers.TrainingArguments has no such field", fix)


def training_argument_names() -> list[str]:
    """The fields of TrainingArguments, read from its source: importing it takes seconds."""
    root = Path(importlib.util.find_spec("transformers").origin).parent
    tree = ast.parse((root / "training_args.py").read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TrainingArguments")
    return [node.target.id for node in body if isinstance(node, ast.AnnAssign)]
