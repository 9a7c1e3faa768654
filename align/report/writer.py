"""Keeps progress.json and report.html up to date while a run goes on, and writes them however it ends."""

from __future__ import annotations

import datetime
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback

from align.errors import shorten
from align.report import facts, model_card, page
from align.report.series import Metrics
from align.run import RunFolder, read_json, write_json, write_text

EVERY = 60.0  # seconds between two pages, at least
SHARE = 0.01  # of the time of a run that its pages may take, at most
FINISHED, RUNNING, STOPPED = "finished", "running", "stopped"


class ReportWriter(TrainerCallback):
    """A context around a run, and a callback of its loop. Only the first rank writes.

    A page that cannot be written (a full disk) is told once; it stops no run.
    """

    def __init__(self, run: RunFolder):
        self.run, self.metrics, self.writes = run, Metrics(run.metrics), PartialState().is_main_process
        self.begun, self.before = time.monotonic(), 0.0  # `before`: seconds of the run before it was gone on with
        self.steps: int | None = None
        self.peak = 0
        self.due, self.seen, self.is_told = self.begun + EVERY, None, False

    def __enter__(self) -> ReportWriter:
        return self

    def __exit__(self, kind, error, _) -> None:
        if kind is None:
            self.peak = max(gather_object([peak_memory()]))
            self._write(FINISHED)
        elif self.run.recipe.exists():
            self._write(STOPPED, f"{kind.__name__}: {error}" if str(error) else kind.__name__)

    def on_train_begin(self, args, state, control, **kwargs):
        self.steps = state.max_steps
        if self.writes:
            self.before = read_json(self.run.progress).get("seconds", 0.0) if state.global_step else 0.0
            self._write(RUNNING)

    def on_step_end(self, args, state, control, **kwargs):
        if self.writes and (time.monotonic() >= self.due or self._has_news()):
            self._write(RUNNING)

    def _has_news(self) -> bool:
        """Whether an evaluation has been written since the last page."""
        return self.run.evaluation.exists() and self.run.evaluation.stat().st_mtime_ns != self.seen

    def cards(self) -> dict[str, str]:
        """The model card of the final weights, by its file name; that of the run folder is written here."""
        found: dict[str, str] = {}
        self._write(RUNNING)
        if self.writes:
            with self._spared("README.md"):
                found |= model_card.write(facts.read(self.run.path, self.metrics))
        return found

    def _write(self, state: str, why: str | None = None) -> None:
        if not self.writes:
            return
        started = time.monotonic()
        with self._spared("report.html"):
            self.seen = self.run.evaluation.stat().st_mtime_ns if self.run.evaluation.exists() else None
            write_json(self.run.progress, self._progress(state, why))
            write_text(self.run.report, page.of_run(facts.read(self.run.path, self.metrics)))
        now = time.monotonic()
        self.due = now + max(EVERY, (now - started) / SHARE)

    @contextmanager
    def _spared(self, name: str) -> Iterator[None]:
        """Lets no error out: whatever is wrong with a page, the weights are worth more."""
        try:
            yield
        except Exception as error:
            if not self.is_told:
                print(f"{name} was not written: {shorten(error, 160)}", file=sys.stderr, flush=True)
            self.is_told = True

    def _progress(self, state: str, why: str | None) -> dict:
        self.peak = max(self.peak, peak_memory())
        return {
            "state": state,
            "why": why and shorten(why, 400),
            "steps": self.steps,
            "seconds": round(self.before + time.monotonic() - self.begun, 3),
            "peak_memory_bytes": self.peak,
            "written": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }


def peak_memory() -> int:
    """The most bytes that this process has had: of its GPU where there is one, else of main memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
