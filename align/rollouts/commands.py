"""`align sample`, `align judge` and `align iterate`."""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
from pathlib import Path

from align import processor, recipe
from align.data import sources
from align.data.ledger import Ledger
from align.errors import UserError
from align.generation import load_policy
from align.judges import Answer, consensus
from align.judges import load as judges_load
from align.recipe import Recipe
from align.rollouts import iterate

_TOGETHER = 16  # answers scored at once


def main(given: argparse.Namespace) -> None:
    """Runs one of the three commands. Raises UserError."""
    loaded = recipe.load(given.recipe, given.overrides)
    if loaded.rollouts is None:
        raise UserError(given.recipe, "has no section rollouts", "recipes/bcpg_nsa.yaml is an example")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("command line", "roll-outs have been tried on one process only", "start it without a launcher")
    processor.prepare()
    if given.command == "iterate":
        iterate.iterate(loaded, given.rounds, given.seeds)
    elif given.command == "sample":
        sample(loaded)
    elif given.score:
        score(loaded, given.score, given.rows)
    else:
        judge(loaded)


def sample(loaded: Recipe) -> None:
    """Round 0 up to `rollouts.jsonl`."""
    output = Path(loaded.output)
    iterate.write_recipe(loaded, output)
    policy = load_policy(loaded, iterate.start_policy(loaded, output))
    folder = output / "round-0"
    iterate.sample_round(loaded, 0, folder, policy)
    _tell(folder / "rollouts.jsonl")


def judge(loaded: Recipe) -> None:
    """Round 0 from `rollouts.jsonl` to `judged.jsonl`."""
    _need_judges(loaded)
    folder = Path(loaded.output) / "round-0"
    if not (folder / "rollouts.jsonl").exists():
        raise UserError(str(folder), "holds no roll-outs", "align sample RECIPE first")
    iterate.judge_round(loaded, folder, judges_load.load(loaded, _policy(loaded)))
    _tell(folder / "judged.jsonl")


def score(loaded: Recipe, path: str, limit: int | None) -> None:
    """Prints how each judge does on answers with labelled steps: ProcessBench's measures and those of single steps."""
    _need_judges(loaded)
    problem = sources.check(path, "train")
    if problem:
        raise UserError(path, *problem)
    examples = sources.read(path, "train", on_bad_rows=loaded.data.on_bad_rows, ledger=Ledger())[:limit]
    found = [
        (Answer(example, response.text, tuple(step.end for step in response.steps)), response)
        for example in examples
        for response in example.responses
        if consensus.first_marked([step.label for step in response.steps]) is not None
    ]
    if not found:
        raise UserError(path, "no answer has steps labelled up to its first error", "give rows with labelled 'steps'")
    answers = [answer for answer, _ in found]
    known = [[step.label for step in response.steps] for _, response in found]
    results = {}
    for one in judges_load.load(loaded, _policy(loaded)):
        scores = list(itertools.chain.from_iterable(
            one.score(answers[start : start + _TOGETHER]) for start in range(0, len(answers), _TOGETHER)
        ))  # fmt: skip
        wanted = [consensus.first_marked(marks) for marks in known]
        said = [consensus.first_error(own, one.good) for own in scores]
        results[one.name] = consensus.process_bench(said, wanted) | consensus.step_quality(scores, known, one.good)
    print(json.dumps(results, indent=2))


def _need_judges(loaded: Recipe) -> None:
    if loaded.judges is None:
        raise UserError("judges", "names no judge", "give judges.rollout={n: 4}, for instance")


def _policy(loaded: Recipe):
    """What loads the policy that round 0 samples from, at most once."""
    return functools.lru_cache(lambda: load_policy(loaded, iterate.start_policy(loaded, Path(loaded.output))))


def _tell(path: Path) -> None:
    facts = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    shown = {key: value for key, value in facts.items() if key not in ("made_by", "begun", "finished")}
    print(f"{path}: {json.dumps(shown)}")
