"""The parts of a training job, each made from the recipe: arguments, rows, policy, layout, steps, what scores them."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import (
    get_available_reporting_integrations,
    is_deepspeed_zero3_enabled,
)

from align import models, precision
from align.calibration import Calibration
from align.data import load as data_load
from align.data.layout import NONE, PACKED, PADDED
from align.data.load import Rows
from align.data.load_streams import Streams, is_streamed
from align.data.steps import Steps
from align.errors import UserError, shorten
from align.guard.options import OFF
from align.job.policy import weights_type, with_adapters
from align.negatives import in_context
from align.negatives.sampling import Sampler
from align.objectives import Objective
from align.precision import BF16
from align.pulls import Pulls
from align.recipe import Recipe
from align.reference import References
from align.reference.ema import RunningMeans
from align.reference.teacher import Teacher
from align.run import RunFolder
from align.scoring import recompute, support
from align.scoring.head import causal_lm
from align.start_check import StartCheck, must_agree
from align.view import Scorer

# Where the recipe is silent and transformers' default is not ours; `train.hf` has the last word.
DEFAULTS = {"lr_scheduler_type": "linear", "weight_decay": 0.0, "report_to": "none", "save_total_limit": 2}


def say(text: str) -> None:
    """Prints on the first rank."""
    if PartialState().is_main_process:
        print(text, flush=True)


def training_arguments(recipe: Recipe, run: RunFolder) -> TrainingArguments:
    """TrainingArguments of a recipe; made before any weight is loaded, since DeepSpeed shards while loading."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("1", "true"):
        raise UserError("accelerate", "FSDP has never been tried with this trainer", "use DDP or DeepSpeed ZeRO")
    options = recipe.train
    given = DEFAULTS | options.hf | {
        "output_dir": str(run.checkpoints),
        "run_name": recipe.name,
        "learning_rate": options.learning_rate,
        "seed": options.seed,
        "num_train_epochs": 1,  # the data loader is the whole run
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,  # one item of the data loader is one optimiser step
        "bf16": precision.choose(options.precision).name == BF16,
        "save_strategy": "steps" if options.save_every else "no",
        "save_steps": options.save_every or 500,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "prediction_loss_only": True,
        "ignore_data_skip": True,  # the loader itself begins at the right step
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
    }  # fmt: skip
    try:
        args = TrainingArguments(**given)
    except (TypeError, ValueError, ImportError) as error:
        raise UserError("train.hf", shorten(error, 200), "see transformers.TrainingArguments") from None
    for name in args.report_to:
        if name not in (available := get_available_reporting_integrations()):
            fix = f"pip install {shorten(name)}" + (f", or one of {', '.join(available)}" if available else "")
            raise UserError("train.hf.report_to", f"{shorten(name)} is not installed", fix)
    if args.n_gpu > 1:
        fix = "accelerate launch --num_processes N, or set CUDA_VISIBLE_DEVICES to one"
        raise UserError("accelerate", f"one process sees {args.n_gpu} GPUs", fix)
    return args


def load_policy(recipe: Recipe, args: TrainingArguments) -> nn.Module:
    """The policy with its adapters, ready to be trained on this rank's device."""
    policy = with_adapters(recipe, models.load_model(recipe.model, dtype=weights_type(recipe, args.bf16)))
    if not recompute.prepare(policy) and recipe.train.recompute != NONE:
        say(f"train.recompute: none, since {shorten(recipe.model.path)} cannot compute its layers again")
    if not is_deepspeed_zero3_enabled():  # sharded weights cannot run before DeepSpeed has wrapped them
        policy.to(args.device)  # where kernels are that the model must get on with
        difference = support.check_head(policy)
        if difference > support.HEAD_TOLERANCE[policy.dtype]:
            what = f"{shorten(recipe.model.path)}: log-probs differ from the model's own by {difference:.2g}"
            raise UserError("model.path", what, "this model's head is not supported yet")
    elif type(policy.get_output_embeddings()) is not nn.Linear:
        raise UserError("model.adapter.targets", "an adapter on the LM head does not work under ZeRO-3", "use ZeRO-2")
    return policy


def start_check(
    recipe: Recipe, objective: Objective, references: References | None, policy: nn.Module, args: TrainingArguments
) -> StartCheck | None:
    """The comparison of policy and reference at the first step; None where they need not agree."""
    is_random = args.neftune_noise_alpha is not None or not must_agree(policy)
    if references is None or "reference" not in objective.needs or is_random:
        return None
    return StartCheck(objective, references, precision.choose(recipe.train.precision).name)


def running_means(objective: Objective, policy: nn.Module) -> RunningMeans | None:
    """The running means of the policy that the objective asks for."""
    if "ema" not in objective.needs:
        return None
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() in ("1", "true"):
        what = "running means of the policy have never been tried under DeepSpeed"
        raise UserError("accelerate", what, "use DDP (launch/ddp.yaml), or another objective")
    return RunningMeans(policy, objective.ema_decays)


def pulls(recipe: Recipe, objective: Objective, policy: nn.Module) -> Pulls | None:
    """What looks at the gradients of a run; None where nothing needs it."""
    decay = recipe.weights.calibrate
    if recipe.guard.action == OFF and decay is None:
        return None
    size = causal_lm(policy).config.get_text_config().hidden_size
    calibration = None if decay is None else Calibration(decay)
    return Pulls(objective.roles(), size, PartialState().num_processes, calibration)


def scorer(
    recipe: Recipe, objective: Objective, policy: nn.Module, references: References | None, teacher: Teacher | None
) -> Scorer:
    """What scores the micro-batches of a run."""
    means = running_means(objective, policy)
    return Scorer(objective, references, means, recipe.train.seed, teacher, pulls(recipe, objective, policy))


def choose_layout(recipe: Recipe, policy: nn.Module) -> str:
    """The layout that the recipe asks for, or padded, with a word on why, where the model cannot be packed."""
    reason = None
    if recipe.data.layout == PACKED:
        reason = support.use_packed(policy, recipe.data.max_length)
    if reason:
        say(f"data.layout: padded, since {shorten(recipe.model.path)} cannot be packed: {shorten(reason, 160)}")
        return PADDED
    return recipe.data.layout


def load_rows(recipe: Recipe, tokenizer, objective: Objective) -> Rows | Streams:
    """The rows of a recipe, in memory or to be read as the run goes on."""
    if is_streamed(recipe):
        return Streams(recipe, tokenizer, objective)
    return data_load.load(recipe, tokenizer, objective)


def plan_steps(recipe: Recipe, rows: Rows | Streams, tokenizer, run: RunFolder, objective: Objective, layout: str):
    """(Sampler or None, Steps): which rows at which step, and on which rank."""
    options, state = recipe.train, PartialState()
    feed, sampler = rows.feed(recipe), None
    if "samples" in objective.needs:
        sampler = Sampler(
            feed, tokenizer, recipe.sampling, contexts=in_context.load(recipe), seed=options.seed,
            max_length=recipe.data.max_length, folder=run.samples, ledger=rows.ledger,
            equal_calls=is_deepspeed_zero3_enabled(),
        )  # fmt: skip
    steps = Steps(
        feed, sampler, retain=rows.retain_feed(recipe, len(feed)), wants_mismatched="mismatched" in objective.needs,
        splits_roles=bool(objective.adapters),
        rank=state.process_index, world=state.num_processes, max_length=recipe.data.max_length,
        tokens_per_device=options.tokens_per_device, pad_id=tokenizer.eos_token_id, layout=layout,
        recompute=options.recompute,
    )  # fmt: skip
    return sampler, steps
