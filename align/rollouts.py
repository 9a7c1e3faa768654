"""The stages sample and judge: from prompts to roll-outs, right or wrong, with judged steps; records in, records out.

A line of `rollouts.jsonl` and `judged.jsonl` is a record, with `reference` (what is known to be right) beside it. Right
answers are positives, wrong ones negatives, and those that are cut off or hold nothing to compare are samples with a
`note`: nothing learns from them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

import align
from align import models, precision
from align.data import sources
from align.data.examples import Example, Response, parse_row, to_row
from align.data.ledger import Ledger
from align.data.tokenize import encode_prompt
from align.errors import UserError
from align.judges import Answer, Judge, consensus, verifiers
from align.judges.segment import segment
from align.negatives import in_context, sampling
from align.negatives.in_context import Contexts
from align.recipe import Recipe
from align.run import write_json
from align.stage import Stage, sha256_of

REWARDS = {"positive": 1.0, "negative": -1.0}
_TOGETHER = 8  # prompts whose answers are judged, and then kept, together


@dataclasses.dataclass
class Policy:
    """A model to sample from."""

    path: str
    model: torch.nn.Module
    tokenizer: object
    weights_sha256: str


def load_policy(recipe: Recipe, path: str) -> Policy:
    """The model at `path`, in the precision of the recipe, on the device."""
    options = dataclasses.replace(recipe.model, path=path, adapter=None)
    is_bf16 = precision.choose(recipe.train.precision).name == precision.BF16
    model = models.load_model(options, dtype=torch.bfloat16 if is_bf16 else torch.float32).eval()
    digest = models.weights_hash(model)
    return Policy(
        path, model.to("cuda" if torch.cuda.is_available() else "cpu"), models.load_tokenizer(options), digest
    )


def train_prompts(recipe: Recipe, number: int, ledger: Ledger) -> list[Example]:
    """The prompts of round `number`: all, or another part of the training rows in each round, over and over."""
    found, wanted = examples_of(recipe, held_out=False, ledger=ledger), recipe.rollouts.prompts
    if wanted is None or wanted >= len(found):
        return found
    return [found[(number * wanted + index) % len(found)] for index in range(wanted)]


def held_out_prompts(recipe: Recipe, ledger: Ledger) -> list[Example]:
    """The first `rollouts.held_out` prompts that nothing is trained on."""
    found = examples_of(recipe, held_out=True, ledger=ledger)[: recipe.rollouts.held_out]
    if recipe.rollouts.held_out and not found:
        raise UserError("rollouts.held_out", "no prompt is held out", "give eval.sources, or eval.holdout above 0")
    return found


def examples_of(recipe: Recipe, *, held_out: bool, ledger: Ledger) -> list[Example]:
    """Prompts with all their responses, each once, in an order that the seed decides."""
    named = recipe.eval.sources if held_out else recipe.data.sources
    found: dict[str, Example] = {}
    for source in named:
        read = sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=ledger)
        if not held_out and not source.path.startswith(sources.BUILTIN):
            read = sources.split_holdout(read, recipe.eval.holdout)[0]
        for example in read:
            found[example.key] = _joined(found[example.key], example) if example.key in found else example
    if held_out:
        for source in recipe.data.sources:
            if not source.path.startswith(sources.BUILTIN) and recipe.eval.holdout:
                read = sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=Ledger())
                found |= {example.key: example for example in sources.split_holdout(read, recipe.eval.holdout)[1]}
    order = f"{0 if held_out else recipe.train.seed}/"  # all seeds are measured on the same prompts
    return sorted(found.values(), key=lambda one: hashlib.sha256((order + one.key).encode()).digest())


def _joined(one: Example, other: Example) -> Example:
    """A prompt that two rows have, with what both say: what is right by one of them is right."""
    known = {(response.role, response.said) for response in one.responses}
    more = [response for response in other.responses if (response.role, response.said) not in known]
    return dataclasses.replace(one, responses=(*one.responses, *more)) if one.prompt != "" else one


def sample(
    recipe: Recipe, policy: Policy, examples: Sequence[Example], path: Path, name: str, title: str
) -> list[dict]:
    """`sampling.k` verified answers to each prompt, as rows; those in the file `path` are not drawn again.

    `name` and the seed decide what is drawn. Batches are made up the same way whenever a run is gone on with.
    """
    config, verify = recipe.sampling, verifiers.load(recipe.rollouts.verifier)
    stage, contexts = Stage(path, _sampled_by(recipe, policy, examples, name)), in_context.load(recipe)
    made = {"made": {"by": "in_context"}} if contexts.blocks else {}
    if not stage.finished:
        _keep_contexts(contexts, policy, path)
    done, per_call = {row["key"] for row in stage.rows}, max(1, config.batch_size // config.k)
    with tqdm(total=len(examples), initial=len(done), desc=title, unit="prompt") as bar:
        for start in range(0, len(examples), per_call):
            part = examples[start : start + per_call]
            missing = [example for example in part if example.key not in done]
            if not missing:
                continue
            prompts = [_prompt_ids(recipe, policy, example, contexts) for example in part]
            names = [f"{recipe.train.seed}/{name}/{example.key}" for example in part]
            drawn = sampling.draw(policy.model, policy.tokenizer, prompts, names, config, config.k)
            stops = sampling.stop_ids(policy.model, policy.tokenizer)
            rows = {
                example.key: _row(example, [_response(policy, verify, example, *one, stops) | made for one in answers])
                for example, answers in zip(part, drawn, strict=True)
            }
            stage.add([rows[example.key] for example in missing])
            bar.update(len(missing))
    kinds = Counter(_kind(one) for row in stage.rows for one in row["responses"])
    kinds["empty"] = sum(row["empty"] for row in stage.rows)
    stage.finish(responses=dict(kinds))
    return stage.rows


def _keep_contexts(contexts: Contexts, policy: Policy, path: Path) -> None:
    """What is shown while sampling, examples and analyses, is kept beside the answers."""
    contexts.analyse(policy.model, policy.tokenizer)
    if contexts.blocks:
        write_json(path.with_suffix(".in_context.json"), contexts.describe())


def _prompt_ids(recipe: Recipe, policy: Policy, example: Example, contexts: Contexts) -> list[int]:
    ids = encode_prompt(policy.tokenizer, example.prompt)  # what is scored must fit, not what is shown beside it
    if len(ids) + recipe.sampling.max_new_tokens > recipe.data.max_length:
        what = f"{len(ids)} tokens of prompt and {recipe.sampling.max_new_tokens} of answer are over data.max_length"
        raise UserError(str(example.place), what, "raise data.max_length, or lower sampling.max_new_tokens")
    return contexts.encode(policy.model, policy.tokenizer, example)


def _response(policy: Policy, verify, example: Example, ids: list[int], logps: list[float], stops: set[int]) -> dict:
    text = policy.tokenizer.decode(ids, skip_special_tokens=True)
    row = {"text": text, "role": "sample", "behavior_logps": [round(min(logp, 0.0), 6) for logp in logps]}
    if ids[-1] not in stops:
        return row | {"note": "truncated"}
    if not text.strip():
        return row
    verdict = verify(example, text)
    if verdict.is_right is None:
        return row | {"note": verdict.note}
    role = "positive" if verdict.is_right else "negative"
    return row | {"role": role, "reward": REWARDS[role]} | ({"note": verdict.note} if verdict.note else {})


def _row(example: Example, responses: list[dict]) -> dict:
    """The row of a prompt. Answers without a text are no record: they are counted."""
    bare, said = to_row(dataclasses.replace(example, responses=())), [one for one in responses if one["text"].strip()]
    beside = {"reference": example.texts("positive"), "key": example.key, "empty": len(responses) - len(said)}
    return bare | {"responses": said} | beside


def _kind(response: dict) -> str:
    return (
        response["note"]
        if response["role"] == "sample"
        else {"positive": "right", "negative": "wrong"}[response["role"]]
    )


def _sampled_by(recipe: Recipe, policy: Policy, examples: Sequence[Example], name: str) -> dict:
    return {
        "align": align.__version__, "model": policy.path, "weights_sha256": policy.weights_sha256,
        "precision": precision.choose(recipe.train.precision).name, "prompts": len(examples),
        "prompts_sha256": hashlib.sha256("".join(one.key for one in examples).encode()).hexdigest(),
        "seed": recipe.train.seed, "name": name, "sampling": dataclasses.asdict(recipe.sampling),
        "verifier": verifiers.described(recipe.rollouts.verifier),
    }  # fmt: skip


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
