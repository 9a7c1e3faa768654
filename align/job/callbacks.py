"""What watches the loop of a job, in this order: measurements, samples, the guard, progress, checkpoints."""

from __future__ import annotations

from accelerate import PartialState
from transformers.integrations import TensorBoardCallback, is_deepspeed_zero3_enabled

from align.data.layout import PACKED
from align.data.load import Rows
from align.data.load_streams import Streams
from align.evaluation.before_after import BeforeAfter
from align.evaluation.heldout import HeldOut
from align.guard import Watchdog
from align.interruption import EndBehindStep
from align.job.folder import how_to_use
from align.negatives.sampling import Sampler
from align.progress import CarryState, DrawSamples, KeepSnapshots, NameCheckpoints, ProgressLine
from align.recipe import Recipe
from align.reference import ADAPTER_OFF, References
from align.run import RunFolder
from align.start_check import ProbeLayout


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
