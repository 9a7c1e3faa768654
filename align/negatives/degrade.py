"""Negatives that a policy writes under poorer conditions than those it is trained under (SFO's CDNS, on text).

The policy, or a weaker model, answers prompts whose evidence is removed and whose instruction is made vague
(`conditions.py`); an answer is a negative of the **full** prompt, beside the row's own positives, if something shows a
real gap between them (`gaps.py`). With `condition: none` these are the writer's own answers to the full prompt:
self-play, or a weak model's. In a recipe's `output`:

    draws.jsonl       the poor prompt of each row and the answers to it
    gaps-NAME.jsonl   what margin, verifier or judge says of each answer
    negatives.jsonl   the records: full prompt, positives, the negatives that are kept; each says how it was made

The first two grow as they are made, and a killed run goes on with them; the last is written anew each time, so that
another `degrade.gap` costs nothing. A row's own negatives are not in it: name its file as a second source. Answers that
were cut off, are empty, run in circles, repeat another one or say what a positive says are no candidates.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import align
from align import generation, precision
from align.data import sources
from align.data.examples import Example, Prompt, to_row
from align.data.ledger import Ledger
from align.data.messages import as_dict
from align.data.tokenize import encode_prompt
from align.errors import UserError, shorten
from align.generation import Policy
from align.negatives import conditions, sampling
from align.negatives.conditions import Poor
from align.negatives.gaps import Case, Gap
from align.recipe import Recipe
from align.rollouts.prompts import examples_of
from align.stage import Stage, sha256_of

_TOGETHER = 8  # prompts whose answers are looked at, and then kept, together
_UNJUDGED = "not judged"
_QUARTILES = (0, 0.25, 0.5, 0.75, 1)


class Task(NamedTuple):
    """A prompt to be answered under a poor condition."""

    example: Example  # with the full prompt and its positives
    poor: Poor
    yardstick: Prompt | None  # the poorest form of the prompt, that margins are measured against


def tasks(recipe: Recipe, tokenizer, ledger: Ledger) -> list[Task]:
    """The prompts of a recipe that can be made poorer, in an order that the seed decides. Raises UserError for none."""
    how, found, given = recipe.degrade, [], _evidence_beside(recipe)
    examples = examples_of(recipe, held_out=False, ledger=ledger)
    words = conditions.words_of([one.prompt for one in examples])
    for example in examples:
        positives = tuple(one for one in example.responses if one.role == "positive")
        beside = given.get(str(example.place), "")
        noise = conditions.noisy(f"{recipe.train.seed}/noise/{example.key}", words)
        poor = conditions.degrade(example.prompt, beside, how.condition, noise)
        if not positives:
            ledger.drop("no positive to compare with", example.place)
        elif how.evidence and not beside:
            ledger.drop("no evidence under the keys of degrade.evidence", example.place)
        elif poor is None:
            ledger.drop(f"nothing that condition {how.condition} could take away", example.place)
        else:
            prompt = conditions.full(example.prompt, beside)
            yardstick = conditions.degrade(example.prompt, beside, "both", noise)
            whole = dataclasses.replace(example, prompt=prompt, responses=positives)
            asked = encode_prompt(tokenizer, poor.prompt, recipe.sampling.instruction)
            longest = max(len(encode_prompt(tokenizer, prompt)), len(asked))
            if longest + recipe.sampling.max_new_tokens > recipe.data.max_length:
                ledger.drop("too long for data.max_length, with sampling.max_new_tokens", example.place)
            else:
                found.append(Task(whole, poor, yardstick and yardstick.prompt))
    if not found:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(ledger.dropped.items()))
        raise UserError("data.sources", f"no prompt can be used ({reasons})", "give other rows, or another condition")
    return found[: how.prompts]


def draw(recipe: Recipe, writer: Policy, wanted: Sequence[Task], path: Path) -> list[dict]:
    """`sampling.k` answers of the writer to each poor prompt; those in the file are not drawn again."""
    config = recipe.sampling
    stage = Stage(path, _drawn_by(recipe, writer, wanted))
    done, per_call = {row["key"] for row in stage.rows}, max(1, config.batch_size // config.k)
    stops = generation.stop_ids(writer.model, writer.tokenizer)
    with tqdm(total=len(wanted), initial=len(done), desc="answers", unit="prompt") as bar:
        for start in range(0, len(wanted), per_call):
            part = wanted[start : start + per_call]
            missing = {task.example.key for task in part} - done
            if not missing:
                continue
            prompts = [encode_prompt(writer.tokenizer, task.poor.prompt, config.instruction) for task in part]
            names = [f"{recipe.train.seed}/degrade/{task.example.key}" for task in part]  # alike for all conditions
            drawn = generation.draw(writer.model, writer.tokenizer, prompts, names, config, config.k)
            rows = [_row(writer, task, answers, stops) for task, answers in zip(part, drawn, strict=True)]
            stage.add([row for row in rows if row["key"] in missing])
            bar.update(len(missing))
    stage.finish(flaws=dict(Counter(one["flaw"] or "none" for row in stage.rows for one in row["answers"])))
    return stage.rows


def measure(gap: Gap, wanted: Sequence[Task], rows: Sequence[dict], draws: Path, path: Path) -> dict[str, list]:
    """key -> the gap of each answer (None: none can be told, or the answer is no candidate)."""
    compared = _digest([[task.example.prompt, task.example.texts("positive"), task.yardstick] for task in wanted])
    stage = Stage(path, {"draws_sha256": sha256_of(draws), "compared_sha256": compared} | gap.made_by)
    done = {row["key"]: row["gaps"] for row in stage.rows}
    by_key = {task.example.key: task for task in wanted}
    with tqdm(total=len(rows), initial=len(done), desc=f"gaps by {gap.name}", unit="prompt") as bar:
        for start in range(0, len(rows), _TOGETHER):
            part = [row for row in rows[start : start + _TOGETHER] if row["key"] not in done]
            if not part:
                continue
            cases = [_case(by_key[row["key"]], row) for row in part]
            found = [_spread(row, own) for row, own in zip(part, gap.measure(cases), strict=True)]
            _check_finite(by_key, part, found)
            stage.add([{"key": row["key"], "gaps": own} for row, own in zip(part, found, strict=True)])
            done |= {row["key"]: own for row, own in zip(part, found, strict=True)}
            bar.update(len(part))
    values = [value for own in done.values() for value in own if value is not None]
    stage.finish(candidates=len(values), quartiles=np.quantile(values, _QUARTILES).round(4).tolist() if values else [])
    return done


def keep(recipe: Recipe, wanted: Sequence[Task], rows: Sequence[dict], gaps: dict[str, list], path: Path) -> dict:
    """Writes the records with the negatives that are kept, and returns what became of the answers, by reason.

    Raises UserError if none is kept; the records of an earlier gap stay then.
    """
    least, too_small = recipe.degrade.gap, "gap too small"
    if recipe.degrade.kept_by == "verifier":
        least, too_small = 1.0, "right"  # 1: wrong, 0: right
    by_key, found, records = {task.example.key: task for task in wanted}, Counter(), []
    for row in rows:
        task, kept = by_key[row["key"]], []
        for answer, gap in zip(row["answers"], gaps[row["key"]], strict=True):
            reason = answer["flaw"] or (_UNJUDGED if gap is None else too_small if gap < least else None)
            found[reason or "kept"] += 1
            if reason is None:
                made = _made(recipe, task, gap)
                kept.append({"text": answer["text"], "role": "negative", "made": made})
        if kept:
            record = to_row(task.example)
            records.append(record | {"responses": record["responses"] + kept})
    if not records:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(found.items()))
        fix = "raise sampling.temperature, sampling.k or max_new_tokens, or lower degrade.gap"
        raise UserError(str(path), f"no candidate is left of {sum(found.values())} answers ({reasons})", fix)
    path.with_suffix(".json").unlink(missing_ok=True)  # written anew as a whole: it costs nothing
    made_by = {"degrade": dataclasses.asdict(recipe.degrade), "answers_sha256": _digest(rows)}
    stage = Stage(path, made_by, keeps_rows=False)
    stage.write_whole(records)
    stage.finish(prompts=len(rows), prompts_with_negatives=len(records), answers=dict(found))
    return stage.facts


def _evidence_beside(recipe: Recipe) -> dict[str, str]:
    """place -> the texts of its row under the keys of `degrade.evidence`, a line each; without those that have none."""
    found: dict[str, str] = {}
    for source in recipe.data.sources if recipe.degrade.evidence else ():
        for place, row in sources.rows(source.path, source.split, on_damage=lambda error: None):
            values = [_under(row, key) for key in recipe.degrade.evidence]
            lines = [line for value in values for line in (value if isinstance(value, list) else [value])]
            text = "\n".join(line for line in lines if isinstance(line, str) and line.strip())
            if text:
                found[str(place)] = text
    return found


def _under(row: object, key: str) -> object:
    for name in key.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _row(writer: Policy, task: Task, answers: list, stops: set[int]) -> dict:
    """The row of `draws.jsonl`: each answer with why it is no candidate, if it is none."""
    seen: set[str] = set()
    positives = {sampling.normal(text) for text in task.example.texts("positive")}
    found = []
    for ids, _ in answers:
        text = writer.tokenizer.decode(ids, skip_special_tokens=True)
        flaw = "truncated" if ids[-1] not in stops else sampling.flaw(ids, text, seen, set())
        if flaw is None and sampling.normal(text) in positives:
            flaw = "equal to a positive"
        seen.add(sampling.normal(text))
        found.append({"text": text, "flaw": flaw})
    prompt = task.poor.prompt
    shown = prompt if isinstance(prompt, str) else [as_dict(message) for message in prompt]
    return {"key": task.example.key, "prompt": shown, "answers": found}


def _case(task: Task, row: dict) -> Case:
    return Case(task.example, task.yardstick, [one["text"] for one in row["answers"] if one["flaw"] is None])


def _spread(row: dict, gaps: Sequence[float | None]) -> list[float | None]:
    """The gaps of the candidates at the places of their answers."""
    own = iter(gaps)
    return [next(own) if one["flaw"] is None else None for one in row["answers"]]


def _check_finite(by_key: dict[str, Task], rows: Sequence[dict], gaps: Sequence[list]) -> None:
    for row, own in zip(rows, gaps, strict=True):
        if any(value is not None and not math.isfinite(value) for value in own):
            what = "a score is not a finite number; what was scored before is kept"
            raise UserError(str(by_key[row["key"]].example.place), what, "try train.precision=fp32, or another model")


def _made(recipe: Recipe, task: Task, gap: float) -> dict:
    how, poor = recipe.degrade, task.poor
    return {
        "by": "degrade", "condition": how.condition, "evidence": poor.evidence, "instruction": poor.instruction,
        "model": shorten(how.model or recipe.model.path, 200), "kept_by": how.kept_by,
        **({} if how.kept_by == "verifier" else {"gap": round(gap, 4)}),
    }  # fmt: skip


def _drawn_by(recipe: Recipe, writer: Policy, wanted: Sequence[Task]) -> dict:
    return {
        "align": align.__version__, "model": writer.path, "weights_sha256": writer.weights_sha256,
        "precision": precision.choose(recipe.train.precision).name, "condition": recipe.degrade.condition,
        "seed": recipe.train.seed, "sampling": dataclasses.asdict(recipe.sampling), "prompts": len(wanted),
        "prompts_sha256": _digest([[task.example.key, task.poor.prompt] for task in wanted]),
        "positives_sha256": _digest([task.example.texts("positive") for task in wanted]),
    }  # fmt: skip


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()
