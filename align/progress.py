"""What a person and a run folder see while training goes on: callbacks of the loop."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from transformers import TrainerCallback

from align.carried import keep
from align.negatives.sampling import Sampler
from align.run import RunFolder, write_text

if TYPE_CHECKING:
    from align.guard import Watchdog
    from align.trainer import AlignTrainer


class ProgressLine(TrainerCallback):
    """One line a step: step, loss, mean log-probs, tokens a second, time left. On a terminal it stays one line."""

    def __init__(self):
        self.started, self.first = time.monotonic(), 0

    def on_train_begin(self, args, state, control, **kwargs):
        self.started, self.first = time.monotonic(), state.global_step

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        done = state.global_step - self.first
        left = (time.monotonic() - self.started) / max(done, 1) * (state.max_steps - state.global_step)
        roles = [(role, logs.get(f"logps/{role}")) for role in ("negative", "sample", "positive")]
        parts = [f"step {state.global_step}/{state.max_steps}", f"loss {logs['loss']:.4f}"]
        parts += [f"{role}s {value:.2f} nat/token" for role, value in roles if value is not None]
        parts += [f"{logs['tokens_per_second']:.0f} tokens/s", f"{_clock(left)} left"]
        line, live = " · ".join(parts), sys.stdout.isatty()
        print(f"\r{line}\033[K" if live else line, end="" if live and left else "\n", flush=True)


class DrawSamples(TrainerCallback):
    """Has the policy's samples for the coming step ready, between steps, never inside one."""

    def __init__(self, sampler: Sampler):
        self.sampler = sampler

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.sampler.prepare(model, state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.sampler.prepare(model, state.global_step)


class CarryState(TrainerCallback):
    """What goes on from step to step beside the weights: saved with each checkpoint, before it gets its name."""

    def __init__(self, trainer: AlignTrainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.scorer.means is not None:
            self.trainer.scorer.means.update()

    def on_save(self, args, state, control, **kwargs):
        keep(self.trainer, Path(args.output_dir) / f"checkpoint-{state.global_step}")


class KeepSnapshots(TrainerCallback):
    """Keeps what has been trained after 1, 2, 4, 8, ... steps: what a learning curve is measured on."""

    def __init__(self, trainer: AlignTrainer, run: RunFolder, prompts_per_step: int, notes: dict[str, str]):
        self.trainer, self.run, self.prompts_per_step, self.notes = trainer, run, prompts_per_step, notes

    def on_step_end(self, args, state, control, **kwargs):
        step = state.global_step
        if step & (step - 1) == 0:
            save_whole(self.trainer, self.run.snapshot(step * self.prompts_per_step), self.notes)


def save_whole(trainer: AlignTrainer, folder: Path, notes: dict[str, str]) -> None:
    """The model or adapter with its tokenizer and `notes` (file name -> text), under its name only when complete."""
    everyone, unfinished = PartialState(), folder.with_name(f".{folder.name}")
    trainer.save_model(str(unfinished))
    everyone.wait_for_everyone()
    if everyone.is_main_process:
        (unfinished / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml says all of it
        for name, text in notes.items():
            write_text(unfinished / name, text)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(unfinished, folder)
    everyone.wait_for_everyone()


class NameCheckpoints(TrainerCallback):
    """Gives a checkpoint its name `step-N` when it is complete, and prunes old ones.

    The loop writes `checkpoint-N`; a run killed in between leaves that name, which no resume looks at. The checkpoint
    that the guard would go back to is spared.
    """

    def __init__(self, run: RunFolder, guard: Watchdog | None):
        self.run, self.guard = run, guard

    def on_save(self, args, state, control, **kwargs):
        everyone = PartialState()
        everyone.wait_for_everyone()
        if state.is_world_process_zero:
            written = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            (written / "training_args.bin").unlink(missing_ok=True)  # a pickle; recipe.yaml says all of it
            target = self.run.checkpoint(state.global_step)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(written, target)
            if args.save_total_limit:
                spared = None if self.guard is None else self.guard.good
                for step in self.run.checkpoint_steps()[: -args.save_total_limit]:
                    if step != spared:
                        shutil.rmtree(self.run.checkpoint(step))
        everyone.wait_for_everyone()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
