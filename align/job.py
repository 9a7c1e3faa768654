"""A training job: from a checked recipe to a finished run folder, in the order a reader would do it."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import logging as transformers_logging

from align import likelihood_ratio, models, precision, processor
from align.data import load as data_load
from align.data.layout import NONE, PACKED, PADDED
from align.data.ledger import Ledger
from align.data.load import Rows
from align.data.load_streams import Streams, is_streamed
from align.data.nat import inference_label
from align.data.plan import PlannedFeed
from align.data.steps import Feed, Steps
from align.data.stream import StreamFeed
from align.errors import UserError, shorten
from align.evaluation.before_after import BeforeAfter
from align.evaluation.heldout import HeldOut
from align.guard import ProbeLayout, StartCheck, must_agree
from align.negatives.sampling import Sampler
from align.objectives import Objective
from align.policy_setup import weights_type, with_adapters
from align.precision import BF16
from align.progress import CarryState, DrawSamples, KeepSnapshots, NameCheckpoints, ProgressLine, save_whole
from align.provenance import environment
from align.recipe import Recipe
from align.reference import ADAPTER_OFF, References
from align.reference.ema import RunningMeans
from align.reference_setup import STORE_OFF, load_references
from align.run import RunFolder, write_json, write_text
from align.scoring import recompute, support
from align.scoring.head import causal_lm
from align.trainer import AlignTrainer
from align.view import Scorer

# Where the recipe is silent and transformers' default is not ours; `train.hf` has the last word.
DEFAULTS = {"lr_scheduler_type": "linear", "weight_decay": 0.0, "report_to": "none", "save_total_limit": 2}


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Runs the recipe, or goes on with it. Raises UserError; FloatingPointError if a loss is not finite.

    `callbacks` watch the loop beside the job's own, and are called before them.
    """
    run = RunFolder(recipe.output)
    checkpoint = run.resume_from(recipe.train.resume)
    if recipe.train.resume:
        run.check_same(recipe.to_yaml())
    if run.finished() and recipe.train.resume:
        return say(f"{run.path} is finished already; the result is in {run.final}")
    args = training_arguments(recipe, run)
    processor.prepare()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other; nothing a user can act on
    transformers_logging.disable_progress_bar()
    set_seed(recipe.train.seed)
    objective, tokenizer = recipe.build_objective(), models.load_tokenizer(recipe.model)
    rows = load_rows(recipe, tokenizer, objective)
    policy = load_policy(recipe, args)
    layout = choose_layout(recipe, policy)
    has_reference = bool(recipe.reference.policy or recipe.reference.behavior)
    # A pass over all weights: for `environment.json` at the start, and for the store.
    is_hashed = not checkpoint or (has_reference and recipe.reference.store != STORE_OFF)
    start_hash = models.weights_hash(causal_lm(policy)) if is_hashed else None
    references = load_references(recipe, policy, args, start_hash, layout) if has_reference else None
    for store in set(references.stores.values()) if references else ():
        say(f"reference log-probs: {shorten(str(store.folder), 160)}, {store.num_entries:,} responses there")
    means = running_means(objective, policy)
    sampler, steps = plan_steps(recipe, rows, tokenizer, run, objective, layout)
    say(rows.summary())
    trainer = AlignTrainer(
        model=policy,
        args=args,
        objective=objective,
        scorer=Scorer(objective, references, means, recipe.train.seed),
        retain=recipe.retain,
        steps=steps,
        run=run,
        start_check=start_check(recipe, objective, references, policy, args),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    say(describe(recipe, trainer, args, layout))
    report = add_callbacks(trainer, run, recipe, rows, sampler, tokenizer, layout)
    start_run_folder(run, recipe, rows, args, checkpoint, start_hash)
    if checkpoint:
        trainer.restore(checkpoint)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    write_data(run, rows, steps)
    report.after()
    save_whole(trainer, run.final, how_to_use(recipe, objective))
    say(f"result: {run.final}")


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
            feed, tokenizer, recipe.sampling, seed=options.seed, max_length=recipe.data.max_length,
            folder=run.samples, ledger=rows.ledger, equal_calls=is_deepspeed_zero3_enabled(),
        )  # fmt: skip
    steps = Steps(
        feed, sampler, retain=rows.retain_feed(recipe, len(feed)), wants_mismatched="mismatched" in objective.needs,
        splits_roles=bool(objective.adapters),
        rank=state.process_index, world=state.num_processes, max_length=recipe.data.max_length,
        tokens_per_device=options.tokens_per_device, pad_id=tokenizer.eos_token_id, layout=layout,
        recompute=options.recompute,
    )  # fmt: skip
    return sampler, steps


def describe(recipe: Recipe, trainer: AlignTrainer, args: TrainingArguments, layout: str) -> str:
    """What is about to run, in one line."""
    trained = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters() if p.requires_grad)
    everything = sum(getattr(p, "ds_numel", p.numel()) for p in trainer.model.parameters())
    where = f"{PartialState().num_processes} x {args.device.type}"
    arithmetic, why = precision.choose(recipe.train.precision)
    weights, feed = f"{trained:,} of {everything:,} weights", trainer.train_dataset.feed
    return (
        f"{recipe.name}: {recipe.objective['name']} on {shorten(recipe.model.path)} · {weights} · {len(feed)} steps"
        f"{_epochs(feed)} · {where}, {arithmetic} ({why}), {layout}"
    )


def _epochs(feed: Feed) -> str:
    """How often rows are gone through, where it is known ahead; by group where there are several."""
    found = feed.epochs() if isinstance(feed, PlannedFeed) else {}
    each = (f"{number:.2f} epochs" + (f" of {title}" if len(found) > 1 else "") for title, number in found.items())
    return "".join(f", {one}" for one in each)


def add_callbacks(
    trainer, run: RunFolder, recipe: Recipe, rows: Rows | Streams, sampler: Sampler | None, tokenizer, layout: str
) -> BeforeAfter:
    held_out = HeldOut(
        rows.held_out, state=PartialState(), device=trainer.args.device,
        tokens_per_device=recipe.train.tokens_per_device, pad_id=tokenizer.eos_token_id, layout=layout,
        autocast=trainer.accelerator.autocast,
    )  # fmt: skip
    references = trainer.scorer.references
    if (references is None or references.policy is None) and recipe.model.adapter is not None:
        references = References(ADAPTER_OFF, None, {})  # what the KL is measured against, though nothing learns from it
    report = BeforeAfter(
        run, trainer, held_out, tokenizer, references=references, every=recipe.eval.every,
        num_answers=recipe.eval.generate,
    )  # fmt: skip
    callbacks = [report, DrawSamples(sampler)] if sampler else [report]
    if layout == PACKED and is_deepspeed_zero3_enabled():
        callbacks.insert(0, ProbeLayout(trainer))
    notes = how_to_use(recipe, trainer.objective)
    if recipe.train.snapshots:
        callbacks.append(KeepSnapshots(trainer, run, recipe.train.prompts_per_step, notes))
    for callback in [*callbacks, ProgressLine(), CarryState(trainer), NameCheckpoints(run)]:
        trainer.add_callback(callback)
    return report


def start_run_folder(
    run: RunFolder, recipe: Recipe, rows: Rows | Streams, args, checkpoint: Path | None, start_hash: str | None
) -> None:
    """Writes what is known before the first step; a resumed run keeps what the start wrote."""
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] if checkpoint else 0
    if not PartialState().is_main_process:
        return
    if checkpoint:
        run.begin_as(checkpoint)
        print(f"going on from {checkpoint}, after step {step}", flush=True)
    else:
        write_json(run.environment, environment("bf16" if args.bf16 else "fp32", start_hash))
    write_text(run.recipe, recipe.to_yaml())
    write_json(run.data, rows.ledger.as_dict())
    run.forget_after(step)


def write_data(run: RunFolder, rows: Rows | Streams, steps: Steps) -> None:
    """`data.json`: what became of the rows, those that were streamed included."""
    ledger, retained = steps.feed.everything(rows.ledger), Ledger()
    if isinstance(steps.retain, StreamFeed):
        ledger.merge(steps.retain.everything(retained), "retain: ")
    epochs = {title: round(number, 3) for title, number in steps.feed.epochs().items()}
    if PartialState().is_main_process:
        write_json(run.data, ledger.as_dict() | {"epochs": epochs})


def how_to_use(recipe: Recipe, objective: Objective) -> dict[str, str]:
    """file name -> text: what whoever uses the saved weights must know beside them.

    What NAT puts in front of the user's first message whenever the model is used; which adapters make up a ratio.
    """
    notes = {}
    if recipe.data.nat:
        notes["prompt_prefix.txt"] = inference_label(recipe.data.nat) + "\n"
    if objective.adapters:
        notes[likelihood_ratio.DESCRIPTION] = likelihood_ratio.describe(recipe.model, list(objective.adapters.values()))
    return notes
