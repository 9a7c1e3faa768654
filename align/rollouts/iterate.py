"""`align iterate`: sample, judge, train, again from the trained policy; every stage is gone on with where it was left.

    OUTPUT/recipe.yaml                      the recipe, every value
    OUTPUT/warm/                            the run of the warm start; policy/ is the model it ends with
    OUTPUT/round-N/rollouts.jsonl           answers of the policy that enters round N, verified
    OUTPUT/round-N/judgements-NAME.jsonl    what a judge says of each step
    OUTPUT/round-N/judged.jsonl             the rows of the round
    OUTPUT/round-N/train/                   the run on them; policy/ is the model it ends with
    OUTPUT/round-N/against-M/               the same of another objective on the rows of the last round
    OUTPUT/.../heldout.jsonl                answers to held-out prompts (round 0: before; else beside policy/)
    OUTPUT/pass_at_k.json                   pass@1 and pass@k of all of them

Beside each .jsonl a .json says how it was made. With several seeds OUTPUT/seed-S/ holds the rounds of each.
"""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Sequence
from pathlib import Path

import yaml

from align import job, models, objectives
from align.data.ledger import Ledger
from align.data.options import Source
from align.data.sources import HELD_OUT
from align.errors import UserError
from align.evaluation import pass_at_k
from align.generation import Policy, load_policy
from align.judges import load as judges_load
from align.negatives.options import Sampling
from align.recipe import Eval, Recipe, Reference, resolve
from align.recipe_checks import SECTION_NEEDS
from align.rollouts.judge import judge
from align.rollouts.prompts import held_out_prompts, train_prompts
from align.rollouts.sample import sample
from align.run import write_json, write_text

BEFORE = "before"
_MAY_CHANGE = {"train": ("resume", "save_every", "tokens_per_device"), "rollouts": ("against", "held_out")}


def iterate(recipe: Recipe, rounds: int, seeds: int = 1) -> None:
    """Runs the rounds for each seed, from `train.seed` on, and prints pass@k. Raises UserError."""
    output = Path(recipe.output)
    write_recipe(recipe, output)
    start = start_policy(recipe, output)
    measured: list[dict[str, pass_at_k.Counts]] = []
    for seed in range(recipe.train.seed, recipe.train.seed + seeds):
        folder = output / f"seed-{seed}" if seeds > 1 else output
        seeded = dataclasses.replace(recipe, train=dataclasses.replace(recipe.train, seed=seed))
        measured.append(_rounds(seeded, rounds, folder, start))
    if recipe.rollouts.held_out:
        found = report(measured, recipe.sampling.k)
        write_json(output / "pass_at_k.json", found)
        print(table(found), flush=True)


def write_recipe(recipe: Recipe, output: Path) -> None:
    """Keeps the recipe with the output. Raises UserError if another one made it."""
    file, text = output / "recipe.yaml", recipe.to_yaml()
    if file.exists() and _lasting(file.read_text(encoding="utf-8")) != _lasting(text):
        raise UserError(str(file), "another recipe has written here", "use another output, or that recipe")
    write_text(file, text)


def _lasting(text: str) -> dict:
    """A recipe without what may change when its rounds are gone on with."""
    data = yaml.safe_load(text)
    for section, keys in _MAY_CHANGE.items():
        for key in keys:
            data[section].pop(key, None)
    return data


def start_policy(recipe: Recipe, output: Path) -> str:
    """The path of the model that round 0 samples from, trained first if the recipe says so."""
    warm = recipe.warm_start
    if warm is None:
        return recipe.model.path
    source = Source(path=warm.path, split=warm.split)
    train = dataclasses.replace(
        recipe.train, learning_rate=warm.learning_rate, max_steps=warm.max_steps, prompts_per_step=warm.prompts_per_step
    )
    return _train(recipe, {"name": "nll"}, recipe.model.path, source, train, output / "warm")


def _rounds(recipe: Recipe, rounds: int, output: Path, policy: str) -> dict[str, pass_at_k.Counts]:
    """policy -> counts on held-out prompts, of all that were trained in the rounds of one seed."""
    counts = {}
    for number in range(rounds):
        folder = output / f"round-{number}"
        sample_and_judge(recipe, number, folder, policy, counts)
        source = Source(path=str(folder / "judged.jsonl"))
        ends = {f"round {number + 1}: {recipe.objective['name']}": (recipe.objective, folder / "train")}
        if number == rounds - 1:
            for index, other in enumerate(recipe.rollouts.against):
                hyper = ", ".join(f"{key} {value}" for key, value in other.items() if key != "name")
                name = f"round {number + 1}: {other['name']}" + (f" ({hyper})" if hyper else "")
                ends[name] = (other, folder / f"against-{index}")
        trained = {}
        for name, (objective, run) in ends.items():
            trained[name] = _train(recipe, objective, policy, source, recipe.train, run)
            if recipe.rollouts.held_out:
                counts[name] = _measured(recipe, load_policy(recipe, trained[name]), run)
                gc.collect()
        policy = next(iter(trained.values()))
    return counts


def sample_and_judge(recipe: Recipe, number: int, folder: Path, path: str, counts: dict | None = None) -> None:
    """The stages of round `number` before its training; `counts`: where held-out counts of round 0 go."""
    policy = load_policy(recipe, path)
    if counts is not None and number == 0 and recipe.rollouts.held_out:
        counts[BEFORE] = _measured(recipe, policy, folder)
    sample_round(recipe, number, folder, policy)
    judges = judges_load.load(recipe, lambda: policy) if recipe.judges else []
    judge_round(recipe, folder, judges)


def sample_round(recipe: Recipe, number: int, folder: Path, policy: Policy) -> list[dict]:
    prompts = train_prompts(recipe, number, Ledger())
    return sample(recipe, policy, prompts, folder / "rollouts.jsonl", f"round-{number}", f"sample {number}")


def judge_round(recipe: Recipe, folder: Path, judges: Sequence) -> list[dict]:
    return judge(recipe, judges, folder / "rollouts.jsonl", folder / "judged.jsonl")


def _measured(recipe: Recipe, policy: Policy, folder: Path) -> pass_at_k.Counts:
    """(answers, right ones) of each held-out prompt; every policy draws with the same random numbers."""
    prompts = held_out_prompts(recipe, Ledger())
    rows = sample(recipe, policy, prompts, folder / "heldout.jsonl", HELD_OUT, f"measure {folder.name}")
    right = {row["key"]: sum(one["role"] == "positive" for one in row["responses"]) for row in rows}
    return [(recipe.sampling.k, right[example.key]) for example in prompts]


def _train(recipe: Recipe, objective: dict, policy: str, source: Source, train, run: Path) -> str:
    """The path of the policy that comes out of training `policy` on a source; trained once."""
    own = objectives.load(objective["name"])(**{key: value for key, value in objective.items() if key != "name"})
    plain = dataclasses.replace(
        recipe,
        model=dataclasses.replace(recipe.model, path=policy),
        data=dataclasses.replace(recipe.data, sources=[source]),
        reference=recipe.reference if SECTION_NEEDS["reference"] & set(own.needs) else Reference(),
        objective=objective, train=dataclasses.replace(train, resume=True),
        sampling=Sampling(), warm_start=None, rollouts=None, judges=None,
        eval=Eval(sources=[], holdout=0.0, generate=0), output=str(run),
    )  # fmt: skip
    job.train(resolve(plain, own))
    gc.collect()
    if recipe.model.adapter is None:
        return str(run / "final")
    target = run / "policy"
    if not target.is_dir():
        models.merge_adapter(plain.model, run / "final", target)
    return str(target)


def report(measured: Sequence[dict[str, pass_at_k.Counts]], k: int) -> dict:
    """pass@1 and pass@k of every policy over all seeds, and how it differs from each other one."""
    names, found = list(measured[0]), {}
    for name in names:
        own = [one[name] for one in measured]
        found[name] = {
            "counts": own,
            **{f"pass@{number}": pass_at_k.estimate(own, number) for number in sorted({1, k})},
            "difference": {
                other: {
                    f"pass@{number}": pass_at_k.difference(own, [one[other] for one in measured], number)
                    for number in sorted({1, k})
                }
                for other in names if other != name
            },
        }  # fmt: skip
    return {"seeds": len(measured), "policies": found}


def table(found: dict) -> str:
    """The report for a terminal."""
    policies = found["policies"]
    metrics = [key for key in next(iter(policies.values())) if key.startswith("pass@")]
    lines = [f"held-out prompts, {found['seeds']} seed(s), mean (95 % interval over prompts and seeds)"]
    lines += [f"  {name}: " + " · ".join(f"{key} {one[key]}" for key in metrics) for name, one in policies.items()]
    lines.append("differences")
    for name, one in list(policies.items())[1:]:
        for other, values in one["difference"].items():
            if list(policies).index(other) < list(policies).index(name):
                shown = " · ".join(f"{key} {value.value:+.3f} ({value.low:+.3f} to {value.high:+.3f})"
                                   for key, value in values.items())  # fmt: skip
                lines.append(f"  {name} minus {other}: {shown}")
    return "\n".join(lines)
