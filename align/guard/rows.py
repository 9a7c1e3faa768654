"""The few rows that the guard looks at again and again: which they are, and scoring them.

Shapes: T response tokens of a row, E values read at each position, K likeliest.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align.data import sources
from align.data.collate import MicroBatch, collate
from align.data.encode import Encoder
from align.data.ledger import Ledger
from align.data.share import share_out
from align.data.tokenize import TokenizedRow
from align.objectives import NEGATIVE, POSITIVE, Objective
from align.scoring.head import Read, causal_lm, read_logits
from align.scoring.likeliest import K, likeliest
from align.scoring.logprobs import hidden_states

if TYPE_CHECKING:
    from align.data.options import Source
    from align.recipe import Recipe

LOOKED_AT = 64  # rows of a kind from which the shortest are taken
LONGEST = 24  # response tokens of a row that are scored: measuring must be cheap


def watched_rows(
    recipe: Recipe, objective: Objective, tokenizer, train: Sequence[TokenizedRow], retain: Sequence[TokenizedRow]
) -> dict[str, list[TokenizedRow]]:
    """kind -> rows: neutral prompts, and half as many of what the run learns from: negatives, positives, retain rows.

    `train` and `retain` are rows of the run, the first ones of a stream. Positives that have a reference are not there:
    every step tells of them.
    """
    count = math.ceil(recipe.guard.prompts / 2)
    found = {"benign": neutral_rows(recipe, recipe.guard.sources, objective, tokenizer)}
    roles = {"negative": NEGATIVE} | ({} if "reference" in objective.needs else {"positive": POSITIVE})
    for name, role in roles.items():
        # Where each role has an adapter of its own, nobody writes with that of the negatives.
        is_read = role in objective.roles() and "heads" not in objective.needs
        rows = [row for row in train if any(response.role == role for response in row.responses)] if is_read else []
        found[name] = shortest(rows, role, count)
    return found | {"retain": shortest(retain, POSITIVE, count)}


def neutral_rows(recipe: Recipe, named: list[Source], objective: Objective, tokenizer) -> list[TokenizedRow]:
    """Some rows with good answers of the sources `named`; none if none fits."""
    encoder, aside, examples = Encoder(recipe, tokenizer, objective), Ledger(), []
    for source in named:
        examples += sources.read(source.path, source.split, on_bad_rows="skip", ledger=aside, most=LOOKED_AT)
    rows = [encoder.held_out_row(example, aside) for example in examples]
    rows = [row for row in rows if row is not None and any(r.role == POSITIVE for r in row.responses)]
    return shortest(rows, POSITIVE, recipe.guard.prompts)


def shortest(rows: Sequence[TokenizedRow], role: int, count: int) -> list[TokenizedRow]:
    """The `count` shortest of the first rows, each with the beginning of its first response of `role` alone."""
    cut = []
    for row in rows[:LOOKED_AT]:
        first = next(response for response in row.responses if response.role == role)
        response = dataclasses.replace(
            first, ids=first.ids[:LONGEST], step_labels=None, behavior_logps=None, token_weights=None
        )
        cut.append(dataclasses.replace(row, responses=(response,), retain=False))
    return sorted(cut, key=lambda row: row.lengths()[0])[:count]


class FixedRows:
    """Some rows of one response each, scored by all ranks together: every rank must call each method.

    `autocast` is the run's arithmetic.
    """

    def __init__(
        self, rows: Sequence[TokenizedRow], *, device, tokens_per_device: int, pad_id: int, layout: str,
        autocast: Callable[[], AbstractContextManager],
    ):  # fmt: skip
        self.rows, self.device, self.autocast = list(rows), device, autocast
        state, self.place = PartialState(), {id(row): index for index, row in enumerate(rows)}
        shares = share_out(self.rows, world=state.num_processes, tokens_per_device=tokens_per_device, layout=layout)
        self.batches = [collate(group, pad_id, layout) for group in shares[state.process_index]] if rows else []
        self.num_tokens = sum(len(row.responses[0].ids) for row in rows)
        self.start: list[tuple[Tensor, Tensor]] = []  # of each row (T, K) tokens, (T, K + 1) log-probs: `likeliest`

    @torch.no_grad()
    def scores(self, model: nn.Module, reader: Callable[[MicroBatch], Read]) -> list[Tensor]:
        """(T, E) of each row: what the function that `reader` gives for a micro-batch reads off the logits."""
        own, was_training = {}, model.training
        model.eval()
        with self.autocast():
            for batch in self.batches:
                batch = batch.to(self.device)
                told = read_logits(causal_lm(model), hidden_states(model, batch), reader(batch)).float().cpu()
                for row, part in zip(batch.rows, told.split(batch.mask.sum(-1).tolist()), strict=False):
                    own[self.place[id(row)]] = part
        model.train(was_training)
        found = {index: values for part in gather_object([own]) for index, values in part.items()}
        return [found[index] for index in range(len(self.rows))]

    def note_start(self, model: nn.Module, reader: Callable[[MicroBatch], Read] | None = None) -> list[Tensor]:
        """Keeps what the policy thinks now, in short: what it is compared with from here on.

        Returns what `scores` would of `reader`, from the same pass.
        """

        def beside(batch: MicroBatch) -> Read:
            more = reader(batch) if reader is not None else lambda logits, at: logits[:, :0]

            def read(logits: Tensor, at: slice) -> Tensor:
                ids, logps = likeliest(logits)
                return torch.cat([ids.to(logps), logps, more(logits, at)], dim=-1)  # float32 holds a token's number

            return read

        told = self.scores(model, beside)
        k = min(K, causal_lm(model).config.get_text_config().vocab_size - 1)
        self.start = [(row[:, :k].long(), row[:, k : 2 * k + 1]) for row in told]
        return [row[:, 2 * k + 1 :] for row in told]

    def start_of(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """(M, K) and (M, K + 1): the start on the tokens of a micro-batch of these; of a stand-in anything."""
        parts = [self.start[self.place[id(row)]] for row in batch.rows]
        if not parts:
            parts = [(ids[:1], logps[:1]) for ids, logps in self.start[:1]]
        ids, logps = (torch.cat(one).to(batch.role.device) for one in zip(*parts, strict=True))
        return ids, logps

    def save(self, file: Path) -> None:
        """Writes the start."""
        named = {f"{index}/{name}": part.contiguous() for index, pair in enumerate(self.start)
                 for name, part in zip(("ids", "logps"), pair, strict=True)}  # fmt: skip
        save_file(named, file)

    def load(self, file: Path) -> None:
        """Reads what `save` wrote."""
        parts = load_file(file)
        self.start = [(parts[f"{index}/ids"], parts[f"{index}/logps"]) for index in range(len(self.rows))]
