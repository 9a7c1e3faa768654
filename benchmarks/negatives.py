"""Which negatives teach most: random, near misses, mined, degraded; prompts, positives and steps are the same.

    python benchmarks/negatives.py ROWS.jsonl ... --out FOLDER
    python benchmarks/negatives.py ROWS.jsonl --out FOLDER --kinds evidence instruction both noise   # CDNS's ablations

Each file gives training prompts with their first positive, and test rows with their own right and wrong answers. For
each seed each kind makes one negative a prompt by its own command (`align mine`, `align negatives`); DPO trains on the
prompts for which every kind has one. The accuracy is the share of a test row's pairs in order by mean log-prob. What
is finished in the folder is not made again. Prints a table and writes results.json there.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project on the path in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from align import processor
from align.data.examples import Example
from align.data.ledger import Ledger
from align.evaluation import multiple_choice
from align.evaluation.probe import PER_TOKEN
from align.evaluation.subject import BASE, POLICY
from align.run import write_json
from benchmarks import study

SHARES = {"train": 0.6, "test": 0.4}
DEGRADED = ("both", "evidence", "instruction", "noise", "none")
KINDS = ("own", "random", "near-miss", "mined", "degraded")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", type=Path, help="files of rows with positives and negatives")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kinds", nargs="+", choices=(*KINDS, *DEGRADED), default=KINDS)
    parser.add_argument("--prompts", type=int, default=32, help="training prompts of each file (32)")
    parser.add_argument("--pool", type=int, default=128, help="prompts of each file that negatives are made for (128)")
    parser.add_argument("--tests", type=int, default=96, help="test rows of each file at most (96)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="optimiser steps of recipes/dpo.yaml (20)")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of it")
    given = parser.parse_args()
    files = {file.stem: study.split(multiple_choice.questions(str(file), Ledger()), SHARES, "negatives")
             for file in given.rows}  # fmt: skip
    for seed in range(given.seeds):
        chosen = choose(given, seed, {name: parts["train"] for name, parts in files.items()})
        for kind, examples in chosen.items():
            rows = study.write_rows(given.out / f"{kind}-{seed}.jsonl", examples)
            study.train(
                "recipes/dpo.yaml", given.out / f"{kind}-{seed}", f"data.sources=[{rows}]", f"train.seed={seed}",
                f"train.max_steps={given.steps}", *given.set,
            )  # fmt: skip
    results = measure(given, {name: parts["test"][: given.tests] for name, parts in files.items()})
    write_json(given.out / "results.json", results)
    print(table(results))


def choose(given: argparse.Namespace, seed: int, parts: dict[str, list[Example]]) -> dict[str, list[Example]]:
    """{kind: training examples} of a seed: the same prompts and positives for every kind."""
    found: dict[str, list[Example]] = {kind: [] for kind in given.kinds}
    for name, examples in parts.items():
        folder, pool = given.out / "made" / f"{name}-{seed}", examples[: given.pool]
        made = {kind: make(kind, pool, folder, seed) for kind in given.kinds}
        common = [one.key for one in pool if all(one.key in own for own in made.values())][: given.prompts]
        print(f"{name}, seed {seed}: " + ", ".join(f"{kind} {len(own)}" for kind, own in made.items())
              + f" of {len(pool)} prompts; {len(common)} trained on", flush=True)  # fmt: skip
        for kind, own in made.items():
            found[kind] += [own[key] for key in common]
    return found


def make(kind: str, pool: Sequence[Example], folder: Path, seed: int) -> dict[str, Example]:
    """{prompt's key: the first positive and one negative of a kind}, for the prompts that it has one for."""
    if kind == "own":
        return {one.key: study.first_pair(one) for one in pool}
    bare = [_with(one, [study.first(one, "positive")]) for one in pool]
    out = folder / kind
    if kind == "near-miss":
        rows, made = study.write_rows(folder / "bare.jsonl", bare), out.with_suffix(".jsonl")
        study.align("negatives", "near-miss", rows, "--out", made, "--n", 1, "--seed", seed)
    elif kind in ("random", "mined"):
        rows, made = study.write_rows(folder / "whole.jsonl", map(_first_of_rights, pool)), out / "mined.jsonl"
        how = ["mining.neighbours=8", "mining.strategy={name: percentage, share: 0.95}"]
        if kind == "random":
            how = ["mining.own=false", f"mining.neighbours={len(pool)}", "mining.strategy={name: random}"]
        study.align("mine", "recipes/mine.yaml", f"data.sources=[{rows}]", f"output={out}", f"train.seed={seed}",
                    "mining.keep=1", "mining.scores=[similarity]", *how)  # fmt: skip
    else:
        rows, made = study.write_rows(folder / "bare.jsonl", bare), out / "negatives.jsonl"
        condition = "both" if kind == "degraded" else kind
        study.align("negatives", "degrade", "recipes/degrade.yaml", f"data.sources=[{rows}]", f"output={out}",
                    f"train.seed={seed}", f"degrade.condition={condition}")  # fmt: skip
    examples = multiple_choice.questions(str(made), Ledger())
    return {one.key: study.first_pair(one) for one in examples}


def _with(example: Example, responses: Sequence) -> Example:
    return dataclasses.replace(example, responses=tuple(responses))


def _first_of_rights(example: Example) -> Example:
    negatives = [one for one in example.responses if one.role == "negative"]
    return _with(example, [study.first(example, "positive"), *negatives])


def measure(given: argparse.Namespace, tests: dict[str, list[Example]]) -> dict:
    """Accuracies on the test rows of each file, of all of them, and how they differ from the base's and random's."""
    processor.prepare()
    found: dict[str, dict[str, list[np.ndarray]]] = {}  # kind -> file -> (N,) of each seed
    for kind in given.kinds:
        for seed in range(given.seeds):
            scores = {kind: ({POLICY: 1.0}, PER_TOKEN)} | ({} if BASE in found else {BASE: ({BASE: 1.0}, PER_TOKEN)})
            for score, own in study.accuracies(given.out / f"{kind}-{seed}", tests, scores).items():
                for name, values in own.items():
                    each = found.setdefault(score, {}).setdefault(name, [])
                    each.extend([values] * given.seeds if score == BASE else [values])
    results = {}
    for name in (*tests, "all"):
        named = list(tests) if name == "all" else [name]
        values = {kind: np.concatenate([np.stack(own[one]) for one in named], 1) for kind, own in found.items()}
        results[name] = {kind: {"accuracy": study.told(own), **{
            f"minus {other}": study.told(own - values[other]) for other in (BASE, "random") if other in values
        }} for kind, own in values.items()}  # fmt: skip
    return {"rows": {name: len(examples) for name, examples in tests.items()}, "seeds": given.seeds, "found": results}


def table(results: dict) -> str:
    """Markdown: a line a kind and file."""
    lines = [f"test rows {results['rows']}, {results['seeds']} seeds, 95 % intervals over seeds and rows", "",
             "| rows | negatives | accuracy | minus base | minus random |", "|---|---|---|---|---|"]  # fmt: skip
    for name, kinds in results["found"].items():
        for kind, own in kinds.items():
            changes = [study.shown(own[f"minus {other}"], is_change=True) if f"minus {other}" in own and other != kind
                       else "" for other in (BASE, "random")]  # fmt: skip
            lines.append(f"| {name} | {kind} | {study.shown(own['accuracy'])} | {' | '.join(changes)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
