"""Ctrl-C and SIGTERM (preemption) while a run trains: it ends behind the step it is in, with a checkpoint."""

from __future__ import annotations

import signal
from types import FrameType

from transformers import TrainerCallback

from align.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Takes the signals while its block runs. The first one is noted; one more ends the process at once."""

    def __init__(self):
        self.noted: int | None = None  # number of the signal that came
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *details) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.noted is not None:
            raise Interrupted(number)
        self.noted = number


class EndBehindStep(TrainerCallback):
    """Saves and ends the loop behind a step in which a rank was told to end; `trainer.interrupted` says so."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if self.trainer.interrupted is not None:
            control.should_save = control.should_training_stop = True
