"""`align negatives degrade`: from a recipe to the records with negatives of degraded conditions."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from align import models, precision, processor, recipe
from align.data.ledger import Ledger
from align.errors import UserError, printable
from align.generation import Policy, load_policy
from align.judges import load as judges_load
from align.judges import verifiers
from align.negatives import degrade
from align.negatives.gaps import Gap, Judged, Margin, Verified
from align.recipe import Recipe
from align.run import write_text


def main(given: argparse.Namespace) -> None:
    """Makes the negatives of a recipe, or goes on with it. Raises UserError."""
    loaded = load(given.recipe, given.overrides, "degrade")
    output, ledger = Path(loaded.output), Ledger()
    wanted = degrade.tasks(loaded, models.load_tokenizer(loaded.model), ledger)
    for reason, count in sorted(ledger.dropped.items()):
        print(printable(f"{reason}: {count} prompts left out"), flush=True)
    write_text(output / "recipe.yaml", loaded.to_yaml())
    policies: dict[str, Policy] = {}

    def policy(path: str) -> Policy:
        if path not in policies:
            policies[path] = load_policy(loaded, path)
        return policies[path]

    draws = output / "draws.jsonl"
    rows = degrade.draw(loaded, policy(loaded.degrade.model or loaded.model.path), wanted, draws)
    gap = _gap(loaded, policy)
    gaps = degrade.measure(gap, wanted, rows, draws, output / f"gaps-{gap.name}.jsonl")
    result = output / "negatives.jsonl"
    facts = degrade.keep(loaded, wanted, rows, gaps, result)
    told = {key: facts[key] for key in ("prompts", "prompts_with_negatives", "answers")}
    print(f"{result}: {json.dumps(told)}")


def load(path: str, overrides: list[str], section: str) -> Recipe:
    """A recipe with this section, on the one process that it has been tried on. Raises UserError."""
    loaded = recipe.load(path, overrides)
    if getattr(loaded, section) is None:
        raise UserError(path, f"has no section {section}", f"recipes/{section}.yaml is an example")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        what = f"align negatives {section} has been tried on one process only"
        raise UserError("command line", what, "start it without a launcher")
    processor.prepare()
    return loaded


def _gap(loaded: Recipe, policy) -> Gap:
    how = loaded.degrade
    if how.kept_by == "verifier":
        return Verified(verifiers.load(how.verifier), verifiers.described(how.verifier))
    if how.kept_by == "judge":
        return Judged(judges_load.load(loaded, lambda: policy(loaded.model.path)))
    in_bf16 = precision.choose(loaded.train.precision).name == precision.BF16
    return Margin(policy(loaded.model.path), loaded.data.max_length, in_bf16)
