"""The two trainers under measurement, run step by step: this project's job, and TRL's DPOTrainer.

Both are transformers Trainers, so one callback gates both. A step is measured from the end of the one before, so
fetching its rows, collating and logging count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from transformers import TrainerCallback

from align import job, models, processor, recipe
from align.job import parts
from align.run import RunFolder
from benchmarks.flops import ModelSize
from benchmarks.gate import Gate, peak_memory
from benchmarks.workload import digest, digest_of


class Gated(TrainerCallback):
    """Lets the loop go on one optimiser step at a time.

    `digests` says which rows a data set gives, in order. `profile_step` is profiled; its unit carries a table.
    """

    def __init__(self, gate: Gate, digests: Callable[[object], Iterable[str]], profile_step: int | None = None):
        self.gate, self.digests, self.profile_step = gate, digests, profile_step
        self.losses: list[float] = []
        self.tokens = 0  # forwarded with gradient since the last report, padding included
        self.profiler = None

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, **kwargs):
        model.get_input_embeddings().register_forward_pre_hook(self._count)
        size = dataclasses.asdict(ModelSize.of(model))
        self.gate.send("ready", digests=list(self.digests(train_dataloader.dataset)), size=size, bf16=args.bf16)
        self.gate.wait()

    def _count(self, module, inputs) -> None:
        self.tokens += inputs[0].numel() if torch.is_grad_enabled() else 0

    def on_step_end(self, args, state, control, **kwargs):
        table = self._stop_profile()
        self.gate.done(tokens_forwarded=self.tokens, **table)
        self.tokens = 0
        if state.global_step < state.max_steps:
            self.gate.wait()
            if state.global_step == self.profile_step:
                self.profiler = torch.profiler.profile().__enter__()

    def _stop_profile(self) -> dict[str, str]:
        if self.profiler is None:
            return {}
        self.profiler.__exit__(None, None, None)
        table = self.profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25)
        self.profiler = None
        return {"profile": table}

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.losses.append(float(logs["loss"]))

    def on_train_end(self, args, state, control, **kwargs):
        self.gate.send("end", losses=self.losses, peak_memory_bytes=peak_memory())
        raise SystemExit(0)  # nothing is saved


def ours(gate: Gate, *, recipe_file: str, profile_step: int | None = None, **_: object) -> None:
    """The real path: `align train` with one callback more."""

    def digests(steps) -> Iterable[str]:
        return (digest(row) for step in range(len(steps)) for row in steps.feed.rows(step))

    job.train(recipe.load(recipe_file), callbacks=[Gated(gate, digests, profile_step)])


def trl(
    gate: Gate, *, recipe_file: str, pairs_file: str, batch: int, accumulate: int, negatives: int, as_ours: bool
) -> None:
    """TRL's DPOTrainer with the recipe's hyper-parameters, on pairs in the order they lie in."""

    def digests(dataset) -> Iterable[str]:
        pairs = list(dataset)
        for start in range(0, len(pairs), negatives):
            group = pairs[start : start + negatives]
            yield digest_of(group[0]["prompt_ids"], [group[0]["chosen_ids"], *(one["rejected_ids"] for one in group)])

    gated = Gated(gate, digests)
    trl_trainer(recipe_file, pairs_file, batch, accumulate, precompute=True, as_ours=as_ours, callbacks=[gated]).train()


def trl_trainer(
    recipe_file: str, pairs_file: str, batch: int, accumulate: int, *, precompute: bool, as_ours: bool, callbacks=()
):
    """A DPOTrainer that trains what the recipe says, on our model and tokenizer.

    `as_ours`: with our settings of the processor, too.
    """
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    if as_ours:
        processor.prepare()
    loaded = recipe.load(recipe_file)
    arguments = parts.training_arguments(loaded, RunFolder(loaded.output))
    config = DPOConfig(
        output_dir=str(Path(loaded.output).parent / "trl"),
        learning_rate=arguments.learning_rate, lr_scheduler_type=arguments.lr_scheduler_type,
        weight_decay=arguments.weight_decay, max_grad_norm=arguments.max_grad_norm, optim=arguments.optim,
        max_steps=loaded.train.max_steps, seed=loaded.train.seed, beta=loaded.objective["beta"],
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulate,
        max_length=loaded.data.max_length, precompute_ref_log_probs=precompute, train_sampling_strategy="sequential",
        gradient_checkpointing=False, bf16=arguments.bf16, use_cpu=arguments.use_cpu, dataset_num_proc=None,
        logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    return DPOTrainer(
        model=parts.load_policy(loaded, arguments),
        args=config,
        train_dataset=Dataset.from_json(pairs_file, cache_dir=str(Path(pairs_file).parent / "cache")),
        processing_class=models.load_tokenizer(loaded.model),
        callbacks=list(callbacks),
    )
