"""The diagonal Fisher information of a base: how much each of its weights has to do with the answers it knows.

Empirical, as in BCWI (https://arxiv.org/abs/2301.10546): of each weight the mean over answers y to prompts x of

    (d log p(y | x) / d w)^2,    log p summed over the tokens of y, end of turn included,

at the base's weights, one answer at a time, then scaled to mean 1 over all weights that are interpolated. There y is
the label that the old model predicts. Here it is an answer that should stay likely: positives of the run, or its
samples, or those of whatever source is named. What no answer among them needs is not protected.
"""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from align.data import sources
from align.data.collate import collate
from align.data.examples import Example, Response
from align.data.ledger import Ledger
from align.data.tokenize import PromptTooLong, TokenizedRow, encode_row
from align.errors import UserError
from align.evaluation.subject import BASE, Subject
from align.objectives import POSITIVE
from align.run import RunFolder
from align.scoring.logprobs import response_logps

ANSWERS = 64  # as many, or all: a pass forward and backward each


def diagonal(models: Subject, names: Collection[str], rows: Sequence[TokenizedRow]) -> dict[str, Tensor]:
    """The diagonal Fisher information of the base's parameters `names`, of mean 1. Each row has one answer."""
    base = models.heads[BASE].model
    chosen = {name: one.requires_grad_(name in names) for name, one in base.named_parameters()}
    chosen = {name: one for name, one in chosen.items() if name in names}
    sums = {name: torch.zeros_like(one) for name, one in chosen.items()}
    for row in tqdm(rows, desc="Fisher information of the base", unit="answer", leave=False):
        batch = collate([row], 0, models.layout).to(next(iter(sums.values())).device)
        gradients = torch.autograd.grad(response_logps(base, batch).sum(), list(chosen.values()), allow_unused=True)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:  # an expert that no token was sent to
                total.addcmul_(gradient, gradient)
    base.requires_grad_(False)
    mean = sum(total.double().sum() for total in sums.values()) / sum(total.numel() for total in sums.values())
    return {name: total.div_(mean) for name, total in sums.items()}


def answers(models: Subject, run: str, source: str | None) -> tuple[list[TokenizedRow], str]:
    """(rows of one answer each, at most ANSWERS, drawn with a fixed seed; where they are from, in words).

    Those of `source`, or else the run's own: the positives it learned from and had to retain, or, where there are none,
    what its policy sampled. Raises UserError if there are none at all.
    """
    folder = RunFolder(run)
    if source:
        found, origin = list(_positives([{"path": source, "split": sources.default_split(source)}])), source
    else:
        recipe = folder.resolved()
        named = [*recipe.get("retain", {}).get("sources", []), *recipe["data"]["sources"]]
        found, origin = list(_positives(named)), "positives of the run"
        if not found:
            found, origin = list(_samples(folder)), "samples of the run"
    rows = [row for example in found if (row := _encode(models, example)) is not None]
    if not rows:
        raise UserError("--fisher", "there is no positive and no sample to take it from", "name rows: --fisher SOURCE")
    return random.Random(0).sample(rows, min(ANSWERS, len(rows))), origin


def _positives(named: list[dict]) -> Iterator[Example]:
    for one in named:
        problem = sources.check(one["path"], one["split"])
        if problem:
            raise UserError("--fisher", *problem)
        for example in sources.read(one["path"], one["split"], on_bad_rows="skip", ledger=Ledger()):
            first = next((response for response in example.responses if response.role == "positive"), None)
            if first is not None:
                yield Example(example.prompt, (first,), example.source, example.place)


def _samples(folder: RunFolder) -> Iterator[Example]:
    for file in sorted(folder.samples.glob("round-*.jsonl")):
        for line in filter(None, file.read_text(encoding="utf-8").splitlines()):
            drawn = json.loads(line)
            prompt = drawn["prompt"] if isinstance(drawn["prompt"], str) else tuple(map(tuple, drawn["prompt"]))
            if drawn["samples"]:
                yield Example(prompt, (Response(drawn["samples"][0]["text"], "positive"),), "", file.name)


def _encode(models: Subject, example: Example) -> TokenizedRow | None:
    """The record in tokens; None if it is too long for the run."""
    try:
        row = encode_row(models.tokenizer, example, roles={POSITIVE}, max_length=models.max_length, ledger=Ledger())
    except PromptTooLong:
        return None
    return row if row.responses else None
