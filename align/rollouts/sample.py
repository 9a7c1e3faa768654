"""The stage sample: from prompts to roll-outs, answers that a verifier has called right or wrong."""

from __future__ import annotations

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import align
from align import generation, precision
from align.data.examples import Example, to_row
from align.data.tokenize import encode_prompt
from align.errors import UserError
from align.generation import Policy
from align.judges import verifiers
from align.negatives import in_context
from align.negatives.in_context import Contexts
from align.recipe import Recipe
from align.run import write_json
from align.stage import Stage

REWARDS = {"positive": 1.0, "negative": -1.0}


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
            drawn = generation.draw(policy.model, policy.tokenizer, prompts, names, config, config.k)
            stops = generation.stop_ids(policy.model, policy.tokenizer)
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
