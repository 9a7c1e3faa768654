"""How many planted flips `align negatives repair` finds, and how many right labels it calls wrong.

    python benchmarks/repair.py rows.jsonl --pairs 240 --folder study

Rows with one positive and one negative are flipped at random (10, 20 and 30 %), and looked at by cross-fitted margins
of the embedded model. Precision: share of planted flips among what is called wrong (guessing has the planted share).
Recall: share of the planted flips that is called wrong. Beside it the threshold of `align doctor --flips`, on margins
of the model itself, not learned. The features are computed once for all shares and seeds, and kept in the folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from align import processor, recipe
from align.data import sources
from align.data.encode import Encoder
from align.data.examples import Example
from align.data.flips import likely_flipped
from align.data.ledger import Ledger
from align.generation import load_policy
from align.negatives import repair
from align.negatives.features import Features
from align.negatives.pairs import pairs_of
from align.objectives import NEGATIVE, POSITIVE

RECIPE = """
name: repair
model: {{path: {model}}}
data: {{sources: [{rows}], max_length: {max_length}}}
objective: {{name: simpo}}
repair: {{}}
output: {folder}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.1, 0.2, 0.3])
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    file = given.folder / "recipe.yaml"
    file.write_text(RECIPE.format(**vars(given) | {"folder": given.folder, "max_length": given.max_length}))
    processor.prepare()
    loaded = recipe.load(file)
    examples, features, seconds = look(loaded, given.pairs)
    print(f"{len(examples)} pairs, features in {seconds:.0f} s")
    for share in given.shares:
        found = [measure(loaded, examples, features, share, seed) for seed in range(given.seeds)]
        print(json.dumps({"planted": share} | {key: [one[key] for one in found] for key in found[0]}))


def look(loaded: recipe.Recipe, most: int) -> tuple[list[Example], list[np.ndarray], float]:
    """(the first pairs, (2, F) features of each, seconds)."""
    (source,) = loaded.data.sources
    read = sources.read(source.path, source.split, on_bad_rows="stop", ledger=Ledger())
    examples = [one for one in read if [r.role for r in one.responses] == ["positive", "negative"] and not tied(one)]
    policy, began = load_policy(loaded, loaded.model.path), time.monotonic()
    encoder, kept, rows = Encoder(loaded, policy.tokenizer, loaded.build_objective()), [], []
    for example in examples:
        row = encoder.tokens(example, {POSITIVE, NEGATIVE}, Ledger()) if len(kept) < most else None
        if row is not None:
            kept.append(example)
            rows.append(row)
    of = Features(
        policy, Path(loaded.output) / "features", max_length=loaded.data.max_length, tokens_at_once=2048, in_bf16=False
    )
    return kept, of.of(rows), time.monotonic() - began


def tied(example: Example) -> bool:
    """Whether two rewards say that neither answer is better, or the answers are the same."""
    first, second = example.responses
    return (first.reward is not None and first.reward == second.reward) or first.said == second.said


def measure(
    loaded: recipe.Recipe, examples: Sequence[Example], features: Sequence[np.ndarray], share: float, seed: int
) -> dict:
    """Flips a share of the pairs and looks for them."""
    flipped = np.random.default_rng(seed).permutation(len(examples)) < round(share * len(examples))
    rows = [swapped(one) if is_flipped else one for one, is_flipped in zip(examples, flipped, strict=True)]
    pairs = [pair for row in rows for pair in pairs_of(row)]
    own = [vectors[::-1] if is_flipped else vectors for vectors, is_flipped in zip(features, flipped, strict=True)]
    own = [np.ascontiguousarray(vectors) for vectors in own]
    began = time.monotonic()
    findings = repair.by_margins(loaded.repair, pairs, own, seed)
    seconds = time.monotonic() - began
    called = np.array([one.is_suspect for one in findings])
    right = np.array([one.evidence["margin"] > 0 for one in findings]) ^ flipped
    zero_shot = np.zeros(len(pairs), dtype=bool)
    zero_shot[likely_flipped([vectors[0, -2] - vectors[1, -2] for vectors in own])[0]] = True
    return {
        **scores(called, flipped), "probe_accuracy_on_true_labels": round(float(right.mean()), 3),
        **{f"doctor_{name}": value for name, value in scores(zero_shot, flipped).items()},
        "seconds": round(seconds, 1),
    }  # fmt: skip


def scores(called: np.ndarray, flipped: np.ndarray) -> dict:
    hits = int((called & flipped).sum())
    return {
        "called": int(called.sum()), "precision": round(hits / max(int(called.sum()), 1), 3),
        "recall": round(hits / max(int(flipped.sum()), 1), 3),
    }  # fmt: skip


def swapped(example: Example) -> Example:
    """The pair with the texts under each other's label: the order of roles stays."""
    first, second = example.responses
    there = (dataclasses.replace(second, role=first.role), dataclasses.replace(first, role=second.role))
    return dataclasses.replace(example, responses=there)


if __name__ == "__main__":
    main()
