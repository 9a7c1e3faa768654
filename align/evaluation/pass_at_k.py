"""pass@k: the chance that one of k answers to a prompt is right, from n answers to each; with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from align.data.examples import Example
from align.errors import UserError
from align.evaluation import figures
from align.evaluation.intervals import bootstrap_runs
from align.evaluation.probe import PROMPTS_AT_ONCE, Probe
from align.evaluation.rows import Rows
from align.generation import draw, stop_ids
from align.judges import verifiers
from align.negatives.options import Sampling

Counts = Sequence[tuple[int, int]]  # for each prompt (answers, right ones)


class Estimate(NamedTuple):
    value: float
    low: float  # of the 95 % bootstrap interval
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.3f} to {self.high:.3f})"


def pass_at_k(answers: int, right: int, k: int) -> float:
    """The unbiased estimate 1 - C(n - c, k) / C(n, k) (arXiv 2107.03374, Eq. 1). Raises ValueError if k > n."""
    if not 0 < k <= answers or not 0 <= right <= answers:
        raise ValueError(f"{right} right of {answers} answers say nothing about pass@{k}")
    return 1.0 - math.comb(answers - right, k) / math.comb(answers, k)


def estimate(runs: Sequence[Counts], k: int, seed: int = 0) -> Estimate:
    """pass@k, averaged over prompts and runs (seeds); all runs answered the same prompts in the same order."""
    return _with_interval(_table(runs, k), seed)


def difference(runs: Sequence[Counts], than: Sequence[Counts], k: int, seed: int = 0) -> Estimate:
    """How much higher pass@k is in `runs` than in `than`, prompt by prompt and run by run."""
    return _with_interval(_table(runs, k) - _table(than, k), seed)


def _table(runs: Sequence[Counts], k: int) -> np.ndarray:
    return np.array([[pass_at_k(answers, right, k) for answers, right in counts] for counts in runs])


def _with_interval(values: np.ndarray, seed: int) -> Estimate:
    return Estimate(float(values.mean()), *bootstrap_runs(values, seed=seed))


def evaluate(probe: Probe, rows: Rows) -> dict:
    """pass@k of each head at k = 1, 2, 4, ... samples; an answer that is cut off or undecided is not right.

    All heads draw with the same random numbers. Raises UserError if nothing says what is right.
    """
    settings = probe.settings
    if settings.verifier is None:
        raise UserError("--measure pass_at_k", "nothing tells right answers from wrong ones", "add --verifier numeric")
    asked = [example for example in rows.examples if example.texts("positive")]
    for example in rows.examples:
        if not example.texts("positive"):
            rows.ledger.drop("no right answer to compare with", example.place)
    examples, counts, undecided = probe.askable(asked, rows.ledger, rows.where), {}, {}
    for name in probe.subject.heads:
        verdicts = _verdicts(probe, name, examples)
        counts[name] = [sum(one is True for one in own) for own in verdicts]
        undecided[name] = sum(one is None for own in verdicts for one in own)
    doubled = [2**power for power in range(settings.samples.bit_length())]
    metrics = {}
    for k in sorted({*doubled, settings.samples}):
        values = {name: [pass_at_k(settings.samples, right, k) for right in own] for name, own in counts.items()}
        metrics[f"pass@{k}"] = figures.portions({name: np.array(own) for name, own in values.items()})
    return {"samples": settings.samples, "verifier": settings.verifier.name, "undecided": undecided, "metrics": metrics}


def _verdicts(probe: Probe, head: str, examples: Sequence[Example]) -> list[list[bool | None]]:
    """For each example whether each of its samples is right; None: cut off, or nothing to compare."""
    settings, tokenizer = probe.settings, probe.subject.tokenizer
    config = Sampling(k=settings.samples, max_new_tokens=settings.max_new_tokens)
    verify, stops = verifiers.load(settings.verifier), stop_ids(probe.subject.heads[head].model, tokenizer)

    def write(model, prompts: list[list[int]], part: Sequence[Example]) -> list:
        return draw(model, tokenizer, prompts, [f"0/{example.key}" for example in part], config, config.k)

    found = []
    drawn = probe.written(head, examples, write, max(1, PROMPTS_AT_ONCE // config.k))
    for example, samples in zip(examples, drawn, strict=True):
        texts = [tokenizer.decode(ids, skip_special_tokens=True) if ids[-1] in stops else None for ids, _ in samples]
        found.append([verify(example, text).is_right if text else None for text in texts])
    return found
