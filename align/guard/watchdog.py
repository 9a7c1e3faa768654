"""Where the guard meets the loop: all ranks measure together, have the same numbers and take the same actions."""

from __future__ import annotations

import json
import math
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate.utils import gather_object
from torch import nn
from transformers import TrainerCallback

from align.carried import roll_back
from align.errors import Stopped
from align.guard.ladder import Ladder
from align.guard.options import ANCHOR, LOWER, ROLLBACK, STOP, Guard
from align.guard.pace import Pace
from align.guard.watches import WORDS, Watches
from align.reference import ADAPTER_OFF, References
from align.run import RunFolder, write_json

if TYPE_CHECKING:
    from align.guard.anchor import Anchor
    from align.trainer import AlignTrainer

STATE, START, HELD = "guard.json", "guard_start.safetensors", "guard_anchors.safetensors"  # files of a checkpoint
RESTORE = "restore"
_STEADY = 0.8  # share of itself that the running mean of what the steps tell keeps
_ANSWERS_EVERY = 4  # measurements with one of short answers, which take the longest
_MOVED = 1.0  # nat a token by which negatives fall between two measurements, at most: then it is time for another
_CARRIED = ("steady", "negative_then", "was_over", "good", "own", "alarms")


class Watchdog(TrainerCallback):
    """Stands behind the callbacks that sample and evaluate, and in front of those that name checkpoints.

    `allowed` are the actions that the recipe allows and that make sense in this run. `saves`: it sees by itself to
    checkpoints to roll back to, which are gone when the run ends well.
    """

    def __init__(
        self, trainer: AlignTrainer, run: RunFolder, config: Guard, *,
        watches: Watches, anchor: Anchor | None, allowed: tuple[str, ...], saves: bool,
    ):  # fmt: skip
        self.trainer, self.run, self.watches, self.anchor, self.saves = trainer, run, watches, anchor, saves
        self.budgets = {name: value for name, value in vars(config.budgets).items() if value is not None}
        self.ladder, self.pace = Ladder(allowed), Pace(config.every)
        self.steady: dict[str, float] = {}  # metric -> running mean of what each step tells for nothing
        self.negative_then: float | None = None  # that of the negatives' log-prob at the last measurement
        self.was_over = False  # whether a measurement was called for since these exceeded a budget
        self.good: int | None = None  # the newest checkpoint that a measurement has found within all budgets
        self.own: list[int] = []  # the steps whose checkpoints are the guard's
        self.alarms, self.verdict = 0, ""  # why the run ends
        self.began, self.saving_since = 0.0, None

    # The loop

    def on_train_begin(self, args, state, control, **kwargs):
        if self.watches.start:
            return  # gone on with
        started = time.monotonic()
        self.watches.begin(self.trainer.model_wrapped)
        if not self._has_adapter():  # else the start can be had again when it is needed
            self.watches.begin_answers()
            if self.anchor is not None:
                self.anchor.rows.note_start(self.trainer.model_wrapped)
        self.pace.prepared(_slowest(time.monotonic() - started))

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.monotonic()

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.pace.took_step(time.monotonic() - self.began)

    def on_step_end(self, args, state, control, **kwargs):
        step, calls = state.global_step, self._note(state.global_step)
        if self.saves and step == 1:  # nothing is lost after one step: the first checkpoint to go back to
            self._save(step, control)
        if step >= self.pace.next or calls:
            self.pace.step_seconds = _slowest(self.pace.step_seconds)
            is_planned = self.pace.every is not None or calls or self.ladder.in_force
            if is_planned or not self.pace.wait():
                self._check(step, control)
            self.pace.plan(step, self.ladder.in_force)
        if self.ladder.weight != 1.0:
            self.trainer.step_metrics["guard/negative_weight"] = self.ladder.weight

    def on_log(self, args, state, control, **kwargs):
        if self.verdict:  # the step's metrics are written
            raise Stopped(self.verdict)

    def on_save(self, args, state, control, **kwargs):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        if state.is_world_process_zero:
            write_json(folder / STATE, self.state())
            self.watches.rows.save(folder / START)
            if self.trainer.anchor is not None or (self.anchor is not None and not self._has_adapter()):
                self.anchor.rows.save(folder / HELD)
        if self.saving_since is not None:
            self.pace.spent += _slowest(time.monotonic() - self.saving_since)
            self.saving_since = None

    def on_train_end(self, args, state, control, **kwargs):
        self.pace.step_seconds = _slowest(self.pace.step_seconds)
        if not state.is_world_process_zero:
            return
        for step in self.own:
            shutil.rmtree(self.run.checkpoint(step), ignore_errors=True)
        if self.own and not any(self.run.checkpoints.iterdir()):
            self.run.checkpoints.rmdir()
        print(f"\n{self.summary()}", flush=True)

    # Measuring

    def _note(self, step: int) -> bool:
        """Takes in what a step tells for nothing; whether that calls for a measurement at once."""
        metrics = self.trainer.step_metrics
        for name in ("log_ratio/positive", "log_ratio/sample", "logps/negative"):
            if name in metrics:
                self.steady[name] = _STEADY * self.steady.get(name, metrics[name]) + (1 - _STEADY) * metrics[name]
        values = self._noted()
        metrics |= {f"guard/{name}": value for name, value in values.items()}
        negative = self.steady.get("logps/negative", 0.0)
        if self.negative_then is None:
            self.negative_then = negative
        is_over, has_moved = self._excess(values)[0] > 1, self.negative_then - negative > _MOVED
        calls = ((is_over and not self.was_over) or has_moved) and not self.pace.is_close(step)
        self.was_over = is_over and (self.was_over or calls)
        return calls

    def _noted(self) -> dict[str, float]:
        metrics = self.trainer.step_metrics
        values = {role: -self.steady[f"log_ratio/{role}"] for role in ("positive", "sample")
                  if f"log_ratio/{role}" in self.steady}  # fmt: skip
        if "guard/gradient_ratio" in metrics:
            values["displacement"] = metrics["guard/gradient_ratio"] * metrics["guard/gradient_cosine"]
        return values

    def _excess(self, values: dict[str, float]) -> tuple[float, str]:
        """(the value of the worst watch over its budget, which one that is); no number is worse than any."""
        found = [(values[name] / budget, name) for name, budget in self.budgets.items() if name in values]
        return max(((one if math.isfinite(one) else math.inf, name) for one, name in found), default=(0.0, ""))

    def _check(self, step: int, control) -> None:
        """Measures, and acts on it."""
        started = time.monotonic()
        with_answers = self.pace.measurements % _ANSWERS_EVERY == _ANSWERS_EVERY - 1
        if with_answers and not self.watches.has_answers:
            with self._start():
                self.watches.begin_answers()
        values = self.watches.measure(self.trainer.model_wrapped, with_answers=with_answers) | self._noted()
        self.pace.measured(_slowest(time.monotonic() - started), step)
        self.trainer.step_metrics |= {f"guard/{name}": value for name, value in values.items()}
        self.trainer.step_metrics["guard/share"] = self.pace.share
        self.negative_then = self.steady.get("logps/negative", 0.0)
        excess, worst = self._excess(values)
        if excess > 1:
            self.alarms += 1
            if self.good == step:  # the first one, whose checkpoint is not written yet
                self.good = None
            for action in self.ladder.alarm(excess, self.good is not None):
                self._tell(step, worst, values[worst], action, self._act(action))
            return
        self._find_good(step, control)
        if self.ladder.calm(excess):
            self.trainer.pulls.negative_weight = self.ladder.weight
            self._tell(step, worst, values[worst], RESTORE, f"negatives weigh {self.ladder.weight:g} again")

    # Acting

    def _act(self, action: str) -> str:
        """Takes an action and says what it was."""
        if action == LOWER:
            self.trainer.pulls.negative_weight = self.ladder.weight
            return f"negatives weigh {self.ladder.weight:g} from here on"
        if action == ANCHOR:
            if not self.anchor.rows.start:
                with self._start() as start:
                    self.anchor.rows.note_start(start)
            self.trainer.anchor = self.anchor
            return "a KL anchor holds the policy to its start from here on"
        if action == ROLLBACK:
            roll_back(self.trainer, self.run.checkpoint(self.good))
            self.steady, self.negative_then, self.was_over = {}, None, False
            return f"weights and optimiser are those of {self.run.checkpoint(self.good).name} again"
        return self._last_words() if action == STOP else "nothing is done yet"

    def _has_adapter(self) -> bool:
        return hasattr(self.trainer.model, "peft_config")

    def _start(self) -> AbstractContextManager[nn.Module]:
        """The policy without its adapter, for a block: what it was at the start."""
        return References(ADAPTER_OFF, None, {}).model(ADAPTER_OFF, self.trainer.model_wrapped)

    def _last_words(self) -> str:
        good = "" if self.good is None else f"; the last good checkpoint is {self.run.checkpoint(self.good)}"
        return f"the run is stopped{good}"

    def _tell(self, step: int, watch: str, value: float, action: str, done: str) -> None:
        """Writes an event down, and says it."""
        budget = self.budgets[watch]
        text = f"{WORDS[watch].format(value)} (budget {budget:g}): {done}"
        if action == STOP:
            self.verdict = f"guard: step {step}: {text}"
        if self.trainer.is_world_process_zero():
            number = value if math.isfinite(value) else None  # which JSON has no word for
            event = {"step": step, "watch": watch, "value": number, "budget": budget, "action": action, "text": text}
            self.run.add_guard_event(event)
            if action != STOP:  # which is said when the program ends
                print(f"\nguard: step {step}: {text}", flush=True)

    def _save(self, step: int, control) -> None:
        """Has the loop write a checkpoint, on the guard's account."""
        control.should_save, self.saving_since = True, time.monotonic()
        self.good = step
        self.own.append(step)

    def _find_good(self, step: int, control) -> None:
        """Notes the newest checkpoint: the policy has just been found within its budgets."""
        if control.should_save:
            self.good = step
        elif self.saves:
            self._save(step, control)
        else:
            steps = gather_object([self.run.checkpoint_steps()])[0]
            self.good = steps[-1] if steps else None

    def summary(self) -> str:
        """What the guard did, in one line."""
        count, alarms = self.pace.measurements, self.alarms
        times = f"{count} measurement{'s' * (count != 1)}, {self.pace.share:.1%} of the time of the steps"
        found = f"{alarms} alarm{'s' * (alarms != 1)}, see {self.run.guard}" if alarms else "no alarm"
        return f"guard: {times}; {found}"

    # Going on

    def state(self) -> dict:
        """What goes on from step to step, in JSON's types."""
        own = {name: getattr(self, name) for name in _CARRIED}
        return own | {"start": self.watches.start, "ladder": self.ladder.state(), "pace": self.pace.state()}

    def restore(self, folder: Path) -> None:
        """Goes on as in a checkpoint. Of one that was written with guard.action: off, the policy there is the start."""
        if not (folder / STATE).exists():
            return
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        vars(self).update({name: state[name] for name in _CARRIED})
        self.watches.start = state["start"]
        self.watches.rows.load(folder / START)
        self.ladder.restore(state["ladder"])
        self.trainer.pulls.negative_weight = self.ladder.weight
        self.pace.restore(state["pace"], json.loads((folder / "trainer_state.json").read_text())["global_step"])
        if self.anchor is not None and (folder / HELD).exists():
            self.anchor.rows.load(folder / HELD)
        self.trainer.anchor = self.anchor if self.ladder.is_anchored else None
        if self.good is not None and not self.run.checkpoint(self.good).is_dir():
            self.good, self.own = None, []  # another run's checkpoint is gone on from


def _slowest(seconds: float) -> float:
    """The most of all ranks."""
    return max(gather_object([seconds]))
