"""A training job: from a checked recipe to a finished run folder, in the order a reader would do it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging as transformers_logging

from align import carried, models, precision, processor
from align.data.plan import PlannedFeed
from align.data.steps import Feed
from align.errors import Interrupted, shorten
from align.guard import setup as guard_setup
from align.job import parts
from align.job.callbacks import add_callbacks
from align.job.folder import how_to_use, start_run_folder, write_data
from align.job.parts import say
from align.job.references import load_start, load_teacher
from align.progress import save_whole
from align.recipe import Recipe
from align.report.writer import ReportWriter
from align.run import RunFolder
from align.trainer import AlignTrainer


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
    args = parts.training_arguments(recipe, run)
    writer = ReportWriter(run)
    processor.prepare()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries to each other; nothing a user can act on
    transformers_logging.disable_progress_bar()
    set_seed(recipe.train.seed)
    objective, tokenizer = recipe.build_objective(), models.load_tokenizer(recipe.model)
    rows = parts.load_rows(recipe, tokenizer, objective)
    policy = parts.load_policy(recipe, args)
    layout = parts.choose_layout(recipe, policy)
    start_hash, references = load_start(recipe, policy, args, layout, is_new=not checkpoint)
    teacher = load_teacher(recipe, objective, policy, args, layout)
    scorer = parts.scorer(recipe, objective, policy, references, teacher)
    sampler, steps = parts.plan_steps(recipe, rows, tokenizer, run, objective, layout)
    say(rows.summary())
    trainer = AlignTrainer(
        model=policy, args=args, objective=objective, scorer=scorer, retain=recipe.retain, steps=steps, run=run,
        start_check=parts.start_check(recipe, objective, references, policy, args),
        processing_class=tokenizer, callbacks=list(callbacks),
    )  # fmt: skip
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
