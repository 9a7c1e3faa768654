"""What is measured beside training: passes of the reference, and drawing samples. Run as workers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.utils.data import DataLoader
from transformers import GenerationConfig

from align import models, processor, recipe
from align.data import load as data_load
from align.data.ledger import Ledger
from align.data.plan import PlannedFeed, StepPlan
from align.generation import stop_ids
from align.job import parts
from align.job.references import load_references
from align.negatives.options import Sampling
from align.negatives.sampling import Sampler
from align.recipe import Recipe
from align.run import RunFolder
from align.scoring.head import causal_lm
from benchmarks.gate import Gate
from benchmarks.training import trl_trainer

MAX_NEW_TOKENS = 64


def _begin(recipe_file: str) -> tuple[Recipe, RunFolder, object, data_load.Rows]:
    """(recipe, run folder, tokenizer, rows), as the job begins."""
    loaded = recipe.load(recipe_file)
    processor.prepare()
    tokenizer = models.load_tokenizer(loaded.model)
    return loaded, RunFolder(loaded.output), tokenizer, data_load.load(loaded, tokenizer, loaded.build_objective())


def ours(gate: Gate, *, recipe_file: str, **_: object) -> None:
    """The reference's log-probs of the rows of a step, a unit, into the store; reports each response's sum."""
    loaded, run, tokenizer, rows = _begin(recipe_file)
    arguments = parts.training_arguments(loaded, run)
    policy = parts.load_policy(loaded, arguments).to(arguments.device)
    layout = parts.choose_layout(loaded, policy)
    references = load_references(loaded, policy, arguments, models.weights_hash(causal_lm(policy)), layout)
    _, steps = parts.plan_steps(loaded, rows, tokenizer, run, loaded.build_objective(), layout)

    def unit(number: int) -> dict:
        sums = {}
        for batch in steps[number].batches:
            batch = batch.to(arguments.device)
            with torch.autocast(arguments.device.type, torch.bfloat16, enabled=arguments.bf16):
                scores = references.logps(policy, batch).sum(-1).tolist()
            for index, score in zip(batch.prompt.tolist(), scores, strict=True):
                sums.setdefault(batch.rows[index].example.prompt, []).append(score)
        in_order = (row.example.prompt for row in steps.feed.rows(number))
        return {"sums": [sums[prompt] for prompt in in_order]}

    gate.send("ready")
    gate.run([lambda number=number: unit(number) for number in range(len(steps))])


def trl(
    gate: Gate, *, recipe_file: str, pairs_file: str, batch: int, accumulate: int, negatives: int, as_ours: bool
) -> None:
    """The same through DPOTrainer.compute_ref_log_probs, over batches of pairs as its own precomputation makes them."""
    trainer = trl_trainer(recipe_file, pairs_file, batch, accumulate, precompute=False, as_ours=as_ours)
    loader = trainer.accelerator.prepare(
        DataLoader(trainer.train_dataset, batch_size=batch, collate_fn=trainer.data_collator, shuffle=False)
    )
    model, batches = trainer.ref_model or trainer.model, iter(loader)

    def unit() -> dict:
        chosen, rejected = [], []
        for _ in range(accumulate):
            good, bad = trainer.compute_ref_log_probs(model, next(batches))
            chosen += good.tolist()
            rejected += bad.tolist()
        starts = range(0, len(chosen), negatives)
        return {"sums": [[chosen[start], *rejected[start : start + negatives]] for start in starts]}

    gate.send("ready")
    gate.run([unit] * (len(trainer.train_dataset) // (batch * accumulate)))


def sampler(gate: Gate, *, recipe_file: str, k: int, **_: object) -> None:
    """`align.negatives.sampling`: K answers to each prompt of a step, a unit."""
    loaded, run, tokenizer, rows = _begin(recipe_file)
    arguments = parts.training_arguments(loaded, run)
    model, plan = parts.load_policy(loaded, arguments).to(arguments.device).eval(), _plan(loaded, rows)
    draws = Sampler(
        PlannedFeed(rows.train, plan), tokenizer, Sampling(k=k, max_new_tokens=MAX_NEW_TOKENS, every=1),
        seed=loaded.train.seed, max_length=loaded.data.max_length, folder=run.samples, ledger=Ledger(),
        equal_calls=False,
    )  # fmt: skip

    def unit(step: int) -> dict:
        draws.prepare(model, step)
        return _counted([ids for index in plan.rows(step) for ids in draws.drawn[rows.train[index].example.key]])

    gate.send("ready")
    gate.run([lambda step=step: unit(step) for step in range(len(plan))])


def generate(gate: Gate, *, recipe_file: str, k: int, together: bool, prompts: int | None = None) -> None:
    """`model.generate` prompt by prompt: K answers in one call if `together`, else in K calls."""
    loaded, run, tokenizer, rows = _begin(recipe_file)
    arguments = parts.training_arguments(loaded, run)
    model, plan = parts.load_policy(loaded, arguments).to(arguments.device).eval(), _plan(loaded, rows)
    stops, calls, each = stop_ids(model, tokenizer), 1 if together else k, k if together else 1
    config = GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=MAX_NEW_TOKENS, num_return_sequences=each,
        eos_token_id=sorted(stops), pad_token_id=tokenizer.eos_token_id, use_cache=True,
    )  # fmt: skip

    def unit(step: int) -> dict:
        answers = []
        for index in plan.rows(step)[:prompts]:
            ids = torch.tensor([rows.train[index].prompt_ids], device=model.device)
            for _ in range(calls):
                found = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
                answers += [_until(answer, stops) for answer in found[:, ids.shape[1] :].tolist()]
        return _counted(answers)

    gate.send("ready")
    gate.run([lambda step=step: unit(step) for step in range(len(plan))])


def _plan(loaded: Recipe, rows: data_load.Rows) -> StepPlan:
    options = loaded.train
    return StepPlan(
        rows.weights, prompts_per_step=options.prompts_per_step, epochs=1, max_steps=options.max_steps,
        seed=options.seed,
    )  # fmt: skip


def _until(ids: Sequence[int], stops: set[int]) -> Sequence[int]:
    end = next((index + 1 for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


def _counted(answers: list) -> dict:
    return {"answers": len(answers), "tokens": sum(map(len, answers))}
