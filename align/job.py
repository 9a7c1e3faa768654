"""A training job: from a checked recipe to a finished run folder, in the order a reader would do it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import (
    TensorBoardCallback,
    is_deepspeed_zero3_enabled,
)
from transformers.utils import logging as transformers_logging

from align import carried, job_parts, likelihood_ratio, models, precision, processor
from align.data.layout import PACKED
from align.data.ledger import Ledger
from align.data.load import Rows
from align.data.load_streams import Streams
from align.data.nat import inference_label
from align.data.plan import PlannedFeed
from align.data.steps import Feed, Steps
from align.data.stream import StreamFeed
from align.errors import Interrupted, shorten
from align.evaluation.before_after import BeforeAfter
from align.evaluation.heldout import HeldOut
from align.guard import Watchdog
from align.guard import setup as guard_setup
from align.interruption import EndBehindStep
from align.job_parts import say
from align.negatives.sampling import Sampler
from align.objectives import Objective
from align.progress import CarryState, DrawSamples, KeepSnapshots, NameCheckpoints, ProgressLine, save_whole
from align.provenance import environment
from align.recipe import Recipe
from align.reference import ADAPTER_OFF, References
from align.reference_setup import STORE_OFF, load_references, load_teacher
from align.report.writer import ReportWriter
from align.run import HEADS_FILE, RunFolder, write_json, write_text
from align.scoring.head import causal_lm
from align.start_check import ProbeLayout
from align.trainer import AlignTrainer
from align.view import Scorer


def train(recipe: Recipe, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Runs the recipe, or goes on with it. Raises UserError; FloatingPointError if a loss is not finite; Stopped.

    `callbacks` watch the loop beside the job's own, and are called before them.
    """
    run = RunFolder(recipe.output)
    checkpoint = run.resume_from(recipe.train.resume)
    if recipe.train.resume:
        run.check_same(recipe.to_yaml())
    if run.finished() and recipe.train.resume:
        return say(f"{run.path} is finished already; the result is in {run.final}")
    args = job_parts.training_arguments(recipe, run)
    writer = ReportWriter(run)
    processor.prepare()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other; nothing a user can act on
    transformers_logging.disable_progress_bar()
    set_seed(recipe.train.seed)
    objective, tokenizer = recipe.build_objective(), models.load_tokenizer(recipe.model)
    rows = job_parts.load_rows(recipe, tokenizer, objective)
    policy = job_parts.load_policy(recipe, args)
    layout = job_parts.choose_layout(recipe, policy)
    has_reference = bool(recipe.reference.policy or recipe.reference.behavior)
    # A pass over all weights: for `environment.json` at the start, and for the store.
    is_hashed = not checkpoint or (has_reference and recipe.reference.store != STORE_OFF)
    start_hash = models.weights_hash(causal_lm(policy)) if is_hashed else None
    references = load_references(recipe, policy, args, start_hash, layout) if has_reference else None
    for store in set(references.stores.values()) if references else ():
        say(f"reference log-probs: {shorten(str(store.folder), 160)}, {store.num_entries:,} responses there")
    means, teacher = job_parts.running_means(objective, policy), load_teacher(recipe, objective, policy, args, layout)
    sampler, steps = job_parts.plan_steps(recipe, rows, tokenizer, run, objective, layout)
    say(rows.summary())
    trainer = AlignTrainer(
        model=policy,
        args=args,
        objective=objective,
        scorer=Scorer(
            objective, references, means, recipe.train.seed, teacher, guard_setup.pulls(recipe, objective, policy)
        ),
        retain=recipe.retain,
        steps=steps,
        run=run,
        start_check=job_parts.start_check(recipe, objective, references, policy, args),
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    say(describe(recipe, trainer, args, layout))
    guard = guard_setup.watchdog(recipe, trainer, rows, tokenizer, layout)
    measures = add_callbacks(trainer, run, recipe, rows, sampler, tokenizer, layout, guard)
    trainer.add_callback(writer)
    start_run_folder(run, recipe, rows, args, checkpoint, start_hash, references)
    with writer:
        if checkpoint:
            carried.restore(trainer, checkpoint)
            if guard is not None:
                guard.restore(checkpoint)
        run_steps(trainer, checkpoint)
        write_data(run, rows, steps)
        end_if_interrupted(trainer)
        measures.after()
        save_whole(trainer, run.final, how_to_use(recipe, objective) | writer.cards())
    say(f"report: {run.report}")
    say(f"result: {run.final}")


def run_steps(trainer: AlignTrainer, checkpoint: Path | None) -> None:
    """All steps, or those up to the one in which a signal comes."""
    with trainer.interruption:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


def end_if_interrupted(trainer: AlignTrainer) -> None:
    """Raises Interrupted, with what is kept, if a signal ended the loop."""
    if trainer.interrupted is not None:
        kept = f"after step {trainer.state.global_step}: checkpoint saved; go on with train.resume=true"
        raise Interrupted(trainer.interrupted, kept)


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
    trainer, run: RunFolder, recipe: Recipe, rows: Rows | Streams, sampler: Sampler | None, tokenizer, layout: str,
    guard: Watchdog | None,
) -> BeforeAfter:  # fmt: skip
    held_out = HeldOut(
        rows.held_out, state=PartialState(), device=trainer.args.device,
        tokens_per_device=recipe.train.tokens_per_device, pad_id=tokenizer.eos_token_id, layout=layout,
        autocast=trainer.accelerator.autocast,
    )  # fmt: skip
    references = trainer.scorer.references
    if (references is None or references.policy is None) and recipe.model.adapter is not None:
        references = References(ADAPTER_OFF, None, {})  # what the KL is measured against, though nothing learns from it
    measures = BeforeAfter(
        run, trainer, held_out, tokenizer, references=references, every=recipe.eval.every,
        num_answers=recipe.eval.generate,
    )  # fmt: skip
    callbacks = [measures, DrawSamples(sampler)] if sampler else [measures]
    if layout == PACKED and is_deepspeed_zero3_enabled():
        callbacks.insert(0, ProbeLayout(trainer))
    notes = how_to_use(recipe, trainer.objective)
    if recipe.train.snapshots:
        callbacks.append(KeepSnapshots(trainer, run, recipe.train.prompts_per_step, notes))
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.logging_dir is None:
            callback.logging_dir = str(run.path / "tensorboard")  # not among the checkpoints
    own = [*callbacks, *([] if guard is None else [guard]), ProgressLine(), EndBehindStep(trainer), CarryState(trainer)]
    for callback in [*own, NameCheckpoints(run, guard)]:
        trainer.add_callback(callback)
    return measures


def start_run_folder(
    run: RunFolder, recipe: Recipe, rows: Rows | Streams, args, checkpoint: Path | None, start_hash: str | None,
    references: References | None,
) -> None:  # fmt: skip
    """Writes what is known before the first step; a resumed run keeps what the start wrote."""
    step = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"] if checkpoint else 0
    if not PartialState().is_main_process:
        return
    if checkpoint:
        run.begin_as(checkpoint)
        print(f"going on from {checkpoint}, after step {step}", flush=True)
    else:
        hashes = references.hashes if references else {}
        write_json(run.environment, environment("bf16" if args.bf16 else "fp32", start_hash, hashes))
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
        notes[HEADS_FILE] = likelihood_ratio.describe(recipe.model, list(objective.adapters.values()))
    return notes
