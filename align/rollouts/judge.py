"""The stage judge: from roll-outs to the rows to learn from, the steps of wrong answers judged."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from align.data.examples import Example, Response, parse_row
from align.errors import UserError
from align.judges import Answer, Judge, consensus
from align.judges.segment import segment
from align.recipe import Recipe
from align.stage import Stage, sha256_of

_TOGETHER = 8  # prompts whose answers are judged, and then kept, together


def judge(recipe: Recipe, judges: Sequence[Judge], rollouts: Path, path: Path) -> list[dict]:
    """The rows to learn from: the wrong answers of `rollouts` with judged steps. Also written to `path`.

    What each judge says is kept beside it, in `judgements-NAME.jsonl`, as soon as it is said.
    """
    rows = [json.loads(line) for line in rollouts.read_text(encoding="utf-8").splitlines()]
    mixed = [row for row in rows if {"positive", "negative"} <= {one["role"] for one in row["responses"]}]
    used = mixed if recipe.rollouts.groups == "mixed" else rows
    if not used:
        what = f"none of {len(rows)} prompts has both a right and a wrong answer"
        fix = "sample more answers a prompt (sampling.k), or easier or harder prompts, or warm_start the policy"
        raise UserError(str(rollouts), what, fix)
    how = recipe.judges.segment if recipe.judges else None
    made_by = {"rollouts_sha256": sha256_of(rollouts), "groups": recipe.rollouts.groups, "segment": how}
    answers = {place: answer for row in used for place, answer in _answers(row, how)} if judges else {}
    said = {one.name: _said(one, answers, path.with_name(f"judgements-{one.name}.jsonl"), made_by) for one in judges}
    good, found = {one.name: one.good for one in judges}, Counter()
    for row in used:
        for index, response in enumerate(row["responses"]):
            place = (row["key"], index)
            if place in answers:
                scores = {name: own[place] for name, own in said.items()}
                labels = consensus.labels(scores, good, len(answers[place].ends))
                ends = answers[place].ends
                response["steps"] = [{"end": end, "label": label} for end, label in zip(ends, labels, strict=True)]
                found.update({1: "right", -1: "wrong", None: "not known"}[label] for label in labels)
    path.unlink(missing_ok=True)  # written anew as a whole: it costs nothing
    path.with_suffix(".json").unlink(missing_ok=True)
    stage = Stage(path, made_by | {one.name: one.made_by | {"good": one.good} for one in judges})
    stage.add(used)
    groups = {"groups": len(rows), "with_right_and_wrong": len(mixed), "used": len(used)}
    stage.finish(groups=groups, steps_of_wrong_answers=dict(found))
    return used


def _answers(row: dict, how: str) -> list[tuple[tuple[str, int], Answer]]:
    """(place, answer) of the wrong answers of a row, cut into steps."""
    example = _verified_example(row)
    return [
        ((row["key"], index), Answer(example, one["text"], segment(one["text"], how)))
        for index, one in enumerate(row["responses"])
        if one["role"] == "negative"
    ]


def _verified_example(row: dict) -> Example:
    """The prompt of a row with what is known to be right as its positives."""
    example = parse_row(row, source=row["source"], place=row["key"])
    return dataclasses.replace(example, responses=tuple(Response(text, "positive") for text in row["reference"]))


def _said(judge: Judge, answers: dict[tuple[str, int], Answer], path: Path, made_by: dict) -> dict:
    """place -> the scores of a judge; what it has said already is not asked again."""
    stage = Stage(path, made_by | judge.made_by)
    done = {(row["key"], row["response"]): row["scores"] for row in stage.rows}
    prompts = list(dict.fromkeys(key for key, _ in answers))
    with tqdm(total=len(answers), initial=len(done), desc=f"judge {judge.name}", unit="answer") as bar:
        for start in range(0, len(prompts), _TOGETHER):
            keys = set(prompts[start : start + _TOGETHER])
            part = {place: answer for place, answer in answers.items() if place[0] in keys}
            missing = [place for place in part if place not in done]
            if not missing:
                continue
            scores = dict(zip(part, judge.score(list(part.values())), strict=True))
            done |= {place: scores[place] for place in missing}
            stage.add([
                {"key": key, "response": index, "ends": list(part[key, index].ends), "scores": scores[key, index]}
                for key, index in missing
            ])  # fmt: skip
            bar.update(len(missing))
    unjudged = sum(all(score is None for score in own) for own in done.values())
    stage.finish(answers=len(done), answers_without_judgement=unjudged)
    if unjudged:
        print(f"judge {judge.name}: no judgement on {unjudged} of {len(done)} answers", flush=True)
    return done
