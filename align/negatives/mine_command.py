"""`align mine`: from a recipe to rows with chosen negatives, and the report on their scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from align import processor, recipe
from align.data.ledger import Ledger
from align.errors import UserError
from align.negatives import mining_report
from align.negatives.mining import Mine
from align.negatives.mining_report import Report
from align.negatives.score_cache import ScoreCache, default_file
from align.recipe import Recipe
from align.run import write_text
from align.stage import Stage


def main(path: str, overrides: Sequence[str]) -> None:
    """Chooses the negatives of a recipe, or goes on with it. Raises UserError."""
    loaded = recipe.load(path, list(overrides))
    if loaded.mining is None:
        raise UserError(path, "has no section mining", "recipes/mine.yaml is an example")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("command line", "mining has been tried on one process only", "start it without a launcher")
    processor.prepare()
    facts = mine(loaded, default_file())
    print(mining_report.table(facts["report"]))
    for reason, one in facts["rows"]["dropped"].items():
        print(f"{reason}: {one['count']:,}")
    print(Path(loaded.output) / "mined.jsonl")


def mine(loaded: Recipe, cache_file: Path) -> dict:
    """Writes `mined.jsonl` and what is to be said of it; returns that. A finished output is left as it is."""
    folder, ledger = Path(loaded.output), Ledger()
    cache = ScoreCache(cache_file)
    work = Mine(loaded, folder, cache, ledger)
    try:
        stage = Stage(folder / "mined.jsonl", work.made_by(), keeps_rows=False)
        if not stage.finished:
            write_text(folder / "recipe.yaml", loaded.to_yaml())
            work.find_neighbours()
            work.score()
            report = Report(loaded.train.seed)
            stage.write_whole(work.choose(report))
            ledger.used = report.served
            stage.finish(report=report.as_dict(), rows=ledger.as_dict())
        return stage.facts
    finally:
        work.close()
        cache.close()
