"""What flipped pairs cost, and what helps: repair before training, or objectives that expect them.

    python benchmarks/damaged.py ROWS.jsonl ... --out FOLDER

The first positive and the first negative of each row are a pair. Of the training pairs 10, 20 and 30 % are flipped;
DPO trains on them clean, damaged, and as `align negatives repair` leaves them; `adaptive_dpo`, `robust` (which is told
the share) and `ropo` train on the damaged ones. The accuracy is the share of unflipped test pairs that a run's implicit
reward puts in order; 0.5 is chance. What is finished in the folder is not run again. Prints a table and writes
results.json there.
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
from align.evaluation import multiple_choice
from align.evaluation.probe import SUM
from align.evaluation.subject import BASE, POLICY
from align.run import write_json
from benchmarks import study
from benchmarks.repair import scores, swapped, tied

SHARES = {"train": 0.6, "test": 0.4}
REWARD = ({POLICY: 1.0, BASE: -1.0}, SUM)
ROBUST = ("adaptive_dpo", "robust", "ropo")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="+", type=Path, help="files of rows with positives and negatives")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=192, help="training pairs of all files together (192)")
    parser.add_argument("--tests", type=int, default=192, help="test pairs of all files together (192)")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 0.2, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=32, help="optimiser steps of each run (32)")
    given = parser.parse_args()
    parts = pairs(given)
    runs, repairs = {}, []
    for seed in range(given.seeds):
        runs["clean", 0.0, seed] = train(given, "dpo", "clean", 0.0, seed, parts["train"])
        for share in given.shares:
            flipped = np.random.default_rng(seed).permutation(len(parts["train"])) < round(share * len(parts["train"]))
            rows = [swapped(one) if bad else one for one, bad in zip(parts["train"], flipped, strict=True)]
            runs["damaged", share, seed] = train(given, "dpo", "damaged", share, seed, rows)
            left, found = repair(given, share, seed, rows, flipped)
            repairs.append({"share": share, "seed": seed, **found})
            runs["repaired", share, seed] = train(given, "dpo", "repaired", share, seed, left)
            for name in ROBUST:
                told = [f"objective.label_smoothing={share}"] if name == "robust" else []
                runs[name, share, seed] = train(given, name, name, share, seed, rows, *told)
    results = {"pairs": {name: len(group) for name, group in parts.items()}, "repair": repairs,
               "found": measure(given, runs, parts["test"])}  # fmt: skip
    write_json(given.out / "results.json", results)
    print(table(results))


def pairs(given: argparse.Namespace) -> dict[str, list[Example]]:
    """Training and test pairs, as many of each file."""
    most = {"train": given.pairs // len(given.rows), "test": given.tests // len(given.rows)}
    found: dict[str, list[Example]] = {part: [] for part in SHARES}
    for file in given.rows:
        rows = map(study.first_pair, multiple_choice.questions(str(file), Ledger()))
        for part, group in study.split([one for one in rows if not tied(one)], SHARES, "damaged").items():
            found[part] += group[: most[part]]
    return found


def train(
    given: argparse.Namespace, recipe: str, name: str, share: float, seed: int, rows: Sequence[Example], *settings: str
) -> Path:
    """The folder of a finished run on these rows."""
    folder = given.out / f"{name}-{share}-{seed}"
    file = study.write_rows(folder.with_name(f"{folder.name}.jsonl"), rows)
    study.train(
        f"recipes/{recipe}.yaml", folder, f"data.sources=[{file}]", f"data.max_length={given.max_length}",
        f"train.seed={seed}", f"train.max_steps={given.steps}", *settings,
    )  # fmt: skip
    return folder


def repair(
    given: argparse.Namespace, share: float, seed: int, rows: Sequence[Example], flipped: np.ndarray
) -> tuple[list[Example], dict]:
    """(the rows that are left, precision and recall of what was dropped)."""
    folder = given.out / f"repair-{share}-{seed}"
    file, left = study.write_rows(folder / "rows.jsonl", rows), folder / "left.jsonl"
    study.align("negatives", "repair", "recipes/repair.yaml", f"data.sources=[{file}]", f"output={folder}",
                f"data.max_length={given.max_length}", f"train.seed={seed}", "--out", left)  # fmt: skip
    kept = multiple_choice.questions(str(left), Ledger())
    keys = {one.key for one in kept}
    return kept, scores(np.array([one.key not in keys for one in rows]), flipped)


def measure(given: argparse.Namespace, runs: dict[tuple, Path], tests: Sequence[Example]) -> dict:
    """{name of an arm: accuracy, and how it differs from DPO's on the same damaged pairs}."""
    processor.prepare()
    values = {run: study.accuracies(folder, {"test": tests}, {"reward": REWARD})["reward"]["test"]
              for run, folder in runs.items()}  # fmt: skip
    found = {}
    arms = {
        (name, share): np.stack([values[name, share, seed] for seed in range(given.seeds)]) for name, share, _ in runs
    }
    for (name, share), own in arms.items():
        found[f"{name} {share:.0%}"] = {"accuracy": study.told(own)} | {
            f"minus damaged {other:.0%}": study.told(own - arms["damaged", other])
            for other in ([share] if share else given.shares)
        }
    return found


def table(results: dict) -> str:
    """Markdown: what repair found, and the accuracies."""
    lines = ["| flipped | precision of what was dropped | recall |", "|---|---|---|"]
    for share in sorted({one["share"] for one in results["repair"]}):
        each = [
            [f"{one[key]:.2f}" for one in results["repair"] if one["share"] == share] for key in ("precision", "recall")
        ]
        lines.append(f"| {share:.0%} | {' '.join(each[0])} | {' '.join(each[1])} |")
    lines += ["", "| trained on | accuracy | minus DPO on the damaged pairs |", "|---|---|---|"]
    for name, own in results["found"].items():
        changes = [f"{key.removeprefix('minus damaged ')}: {study.shown(one, is_change=True)}"
                   for key, one in own.items() if key != "accuracy" and not name.startswith("damaged")]  # fmt: skip
        lines.append(f"| {name} | {study.shown(own['accuracy'])} | {', '.join(changes)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
