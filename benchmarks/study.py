"""What studies of several runs share: rows in parts that no prompt crosses, commands run once, accuracies by row."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from align.data.examples import Example, Response, to_row
from align.data.ledger import Ledger
from align.evaluation import preference_accuracy, subject
from align.evaluation.intervals import bootstrap_runs
from align.evaluation.probe import Probe
from align.run import RunFolder, write_text
from benchmarks.gate import ROOT

Shares = Mapping[str, float]  # part -> share of the prompts
Score = tuple[dict[str, float], str]  # (head -> weight of its log-prob, sum or per token)


def split(examples: Iterable[Example], shares: Shares, name: str) -> dict[str, list[Example]]:
    """The examples by parts, shuffled; `name` and a prompt decide its part, so that it is in one part everywhere."""
    found: dict[str, list[Example]] = {part: [] for part in shares}
    for example in examples:
        place = int.from_bytes(hashlib.sha256(name.encode() + example.key.encode()).digest()[:8], "big") / 2**64
        for part, share in shares.items():
            if place < share or part == list(shares)[-1]:
                found[part].append(example)
                break
            place -= share
    for group in found.values():
        random.Random(0).shuffle(group)
    return found


def write_rows(file: Path, examples: Iterable[Example]) -> Path:
    """Keeps examples as records."""
    write_text(file, "".join(json.dumps(to_row(example), ensure_ascii=False) + "\n" for example in examples))
    return file


def align(*words: object) -> None:
    """Runs an `align` command in a process of its own. Raises CalledProcessError if it fails."""
    subprocess.run([sys.executable, "-m", "align.cli", *map(str, words)], cwd=ROOT, check=True)


def train(recipe: str, folder: Path, *settings: str) -> None:
    """Trains a recipe into a folder, in a process of its own; nothing if that is finished."""
    if not RunFolder(folder).finished():
        words = [*settings, "eval.sources=[]", "eval.holdout=0", "eval.generate=0", "train.resume=true"]
        subprocess.run([sys.executable, "align/train.py", recipe, f"output={folder}", *words], cwd=ROOT, check=True)


def accuracies(
    folder: Path, parts: Mapping[str, Sequence[Example]], scores: Mapping[str, Score]
) -> dict[str, dict[str, np.ndarray]]:
    """{score: {part: (N,)}} of a finished run: each row's share of pairs in order."""
    models = subject.load(folder)
    for head in set(models.heads) - {head for weights, _ in scores.values() for head in weights}:
        models = models.without(head)
    options = {part: Probe(models).options(examples, Ledger()) for part, examples in parts.items()}
    return {name: {part: preference_accuracy.in_order(own, weights, how) for part, own in options.items()}
            for name, (weights, how) in scores.items()}  # fmt: skip


def first_pair(example: Example) -> Example:
    """A row with its first positive and its first negative alone."""
    return dataclasses.replace(example, responses=(first(example, "positive"), first(example, "negative")))


def first(example: Example, role: str) -> Response:
    """The first response of a role."""
    return next(one for one in example.responses if one.role == role)


def told(values: np.ndarray) -> dict:
    """The mean of (runs, N) and its interval over runs and rows."""
    return {"mean": float(values.mean()), "interval": bootstrap_runs(values), "of_runs": values.mean(1).tolist()}


def shown(one: dict, *, is_change: bool = False) -> str:
    """What `told` returns, for a table."""
    low, high = one["interval"]
    return f"{one['mean']:+.3f} ({low:+.3f} to {high:+.3f})" if is_change else f"{one['mean']:.3f}"
