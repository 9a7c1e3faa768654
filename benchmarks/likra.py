"""Likra on questions with wrong options: what each kind of negative teaches, over seeds, with the weight chosen apart.

    python benchmarks/likra.py QUESTIONS.jsonl ... --strangers OTHER.jsonl --out FOLDER

Prompts are split by their hash into training (60 %), a part on which the negative head's weight is chosen (15 %), and
a test part (25 %). For each seed a run trains the positive head and one on near-miss negatives (recipes/likra.yaml
through the command line, with snapshots), two others train negative heads on random and on irrelevant negatives. What
is finished in the folder is not run again. Writes rows, runs, results.json, curve.json and curve.png there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":  # run as a file: the project on the path in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np

from align import processor
from align.data.examples import Example
from align.data.ledger import Ledger
from align.evaluation import curve, multiple_choice, subject
from align.evaluation.multiple_choice import PER_TOKEN, SUM, Options
from align.negatives import controls
from align.run import write_json
from benchmarks import study

SHARES = {"train": 0.60, "tune": 0.15, "test": 0.25}
GRID = tuple(round(0.1 * tenth, 1) for tenth in range(11))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", nargs="+", help="files of rows with positives and negatives")
    parser.add_argument("--strangers", required=True, help="rows whose negatives are the irrelevant ones")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompts", type=int, default=256, help="training prompts (256)")
    parser.add_argument("--tests", type=int, default=200, help="test questions at most (200)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides of the recipe")
    given = parser.parse_args()
    parts = split(given.questions, {"train": given.prompts, "tune": given.tests // 2, "test": given.tests})
    strangers = multiple_choice.questions(given.strangers, Ledger())
    for seed in range(given.seeds):
        kinds = {
            "near-miss": (controls.near_miss(parts["train"], seed), "both"),
            "random": (controls.other_questions(parts["train"], seed), "negative"),
            "irrelevant": (controls.irrelevant(parts["train"], strangers, seed), "negative"),
        }
        for kind, (examples, heads) in kinds.items():
            train(given.out, f"{kind}-{seed}", examples, heads, seed, given.set)
    results = measure(given.out, parts, given.seeds)
    write_json(given.out / "results.json", results)
    print(table(results), flush=True)
    points = curve.measure([str(given.out / "near-miss-0")], parts["test"])
    write_json(given.out / "curve.json", points)
    print(f"\n{curve.table(points)}\n\n{curve.table(points, PER_TOKEN)}")
    curve.plot(points, str(given.out / "curve.png"))


def split(paths: Sequence[str], most: dict[str, int]) -> dict[str, list[Example]]:
    """The questions of some files by SHARES, at most so many."""
    read = (example for path in paths for example in multiple_choice.questions(path, Ledger()))
    return {name: group[: most[name]] for name, group in study.split(read, SHARES, "likra").items()}


def train(out: Path, name: str, examples: Sequence[Example], heads: str, seed: int, overrides: Sequence[str]) -> None:
    """One run of the recipe, in a process of its own; nothing if it is finished."""
    rows = study.write_rows(out / "rows" / f"{name}.jsonl", examples)
    settings = [f"data.sources=[{rows}]", f"objective.heads={heads}", f"train.seed={seed}", "train.snapshots=true"]
    study.train("recipes/likra.yaml", out / name, *settings, *overrides)


def measure(out: Path, parts: dict[str, list[Example]], seeds: int) -> dict:
    """Accuracies on the test part for each seed; w- is chosen on the tuning part, and the ratios are measured at it."""
    processor.prepare()
    base: dict[str, list[np.ndarray]] = {}  # the same for every run
    results: dict = {"questions": {name: len(examples) for name, examples in parts.items()}, "seeds": []}
    for seed in range(seeds):
        heads = {name: {} for name in ("tune", "test")}
        for kind in ("near-miss", "random", "irrelevant"):
            models = subject.load(out / f"{kind}-{seed}")
            for name in heads:
                one = models.without(subject.BASE) if name in base else models
                scored = multiple_choice.score(one, parts[name], Ledger())
                base.setdefault(name, scored.logps.get(subject.BASE))
                named = {"positive": "positive", "negative": kind}
                heads[name] |= {named[head]: values for head, values in scored.logps.items() if head in named}
                heads[name]["shape"] = scored
        options = {name: _options(found, base[name]) for name, found in heads.items()}
        results["seeds"].append(_of_seed(options))
    return results


def _options(found: dict, base: list[np.ndarray]) -> Options:
    shape = found.pop("shape")
    return Options({**found, subject.BASE: base}, shape.lengths, shape.is_right, shape.places)


def _of_seed(options: dict[str, Options]) -> dict:
    scores: dict[str, dict[str, float]] = {"base": {"base": 1.0}, "positive": {"positive": 1.0}}
    for kind in ("near-miss", "random", "irrelevant"):
        scores[f"-{kind}"] = {kind: -1.0}
        for first in ("base", "positive"):
            scores[f"{first} - {kind}"] = {first: 1.0, kind: -1.0}
    result = multiple_choice.measure(options["test"], scores)
    for name in [name for name in scores if " - " in name]:
        first, kind = name.split(" - ")
        for how in (SUM, PER_TOKEN):
            tuned = [options["tune"].correct({first: 1.0, kind: -weight}, how).mean() for weight in GRID]
            weights = {first: 1.0, kind: -GRID[int(np.argmax(tuned))]}
            result[f"{name}, w- chosen by {how}"] = multiple_choice.measure(options["test"], {name: weights})[name]
    return result


def table(results: dict) -> str:
    """Accuracies of all seeds, by sum and per token, with the interval and p of the first."""
    lines = [f"questions {results['questions']}", f"{'':<44}{'by sum':<52}per token"]
    for name in results["seeds"][0]:
        cells = ""
        for how in (SUM, PER_TOKEN):
            found = [seed[name][how] for seed in results["seeds"]]
            low, high = found[0]["interval"]
            each = " ".join(f"{one['accuracy']:.3f}" for one in found)
            p = f", p {found[0]['p']:.2g}" if "p" in found[0] else ""
            cells += f"{each} ({low:.3f} to {high:.3f}{p})".ljust(52)
        lines.append(f"{name:<44}{cells}".rstrip())
    return "\n".join(lines)


if __name__ == "__main__":
    main()
