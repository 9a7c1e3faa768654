"""Samples of the policy's own: K answers a prompt, drawn in batches, filtered, kept in the run folder.

The draw of a prompt depends on the seed, the round, the prompt and k alone (`align.generation`): batch size, world size
and a restart do not change it.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from align.data.ledger import Ledger
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.generation import draw
from align.objectives import SAMPLE
from align.run import write_json

if TYPE_CHECKING:
    from align.data.steps import Feed
    from align.negatives.in_context import Contexts
    from align.negatives.options import Sampling


class Sampler:
    """Draws samples for the rows of the coming steps and hands out rows with their samples attached."""

    def __init__(
        self,
        feed: Feed,
        tokenizer,
        config: Sampling,
        *,
        contexts: Contexts,
        seed: int,
        max_length: int,
        folder: Path,
        ledger: Ledger,
        equal_calls: bool,
    ):
        self.feed, self.tokenizer, self.config, self.contexts = feed, tokenizer, config, contexts
        self.seed, self.max_length, self.folder, self.ledger = seed, max_length, folder, ledger
        self.equal_calls = equal_calls  # ZeRO-3: every rank must call the model equally often
        self.round: int | None = None
        self.drawn: dict[str, list[list[int]]] = {}  # prompt key -> token ids of its K samples
        self.state = PartialState()

    def prepare(self, model, step: int) -> None:
        """Makes sure that samples for `step` (0-based) are at hand, drawing from `model` what is not."""
        every = self.config.every
        number = step // every if every else 0
        if number == self.round or step >= len(self.feed):
            return
        last = min((number + 1) * every, len(self.feed)) if every else len(self.feed)
        rows = self.feed.between(number * every, last)
        self.round, self.drawn = number, self._kept(number)
        missing = {row.example.key: row for row in rows if row.example.key not in self.drawn}
        if missing:
            self.drawn |= self._draw(model, list(missing.values()), number)
        for row in rows:
            self._filter(row, count=True)

    def with_samples(self, row: TokenizedRow) -> TokenizedRow | None:
        """A row with its usable samples; None if none is left."""
        samples = self._filter(row, count=False)
        return dataclasses.replace(row, responses=(*row.responses, *samples)) if samples else None

    def _filter(self, row: TokenizedRow, *, count: bool) -> list[TokenizedResponse]:
        samples: list[TokenizedResponse] = []
        seen: set[str] = set()
        unwanted = {normal(text) for text in row.example.texts("negative")}
        for ids in self.drawn[row.example.key]:
            text = self.tokenizer.decode(ids, skip_special_tokens=True)
            reason = flaw(ids, text, seen, unwanted)
            if reason is None:
                seen.add(normal(text))
                room = self.max_length - len(row.prompt_ids)
                samples.append(TokenizedResponse(tuple(ids[:room]), SAMPLE))
            elif count:
                self.ledger.drop(f"sample dropped: {reason}", row.example.place)
        if count and not samples:
            self.ledger.drop("prompt dropped: no usable sample", row.example.place)
        return samples

    def _kept(self, number: int) -> dict[str, list[list[int]]]:
        """Samples of this round that are in the run folder already, on any rank's disk."""
        found: dict[str, list[list[int]]] = {}
        for file in sorted(self.folder.glob(f"round-{number}.rank*.jsonl")):
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # cut off by a kill; this prompt is drawn again
                found[record["prompt_key"]] = [sample["ids"] for sample in record["samples"]]
        return _merged(found)

    def _draw(self, model, rows: list[TokenizedRow], number: int) -> dict[str, list[list[int]]]:
        rows = sorted(rows, key=lambda row: len(row.prompt_ids), reverse=True)  # like lengths, little padding
        per_call = max(1, self.config.batch_size // self.config.k)
        mine = rows[self.state.process_index :: self.state.num_processes]
        calls = [mine[start : start + per_call] for start in range(0, len(mine), per_call)]
        if self.equal_calls:
            longest = -(-len(rows) // self.state.num_processes)
            calls += [rows[:1]] * (-(-longest // per_call) - len(calls))
        self.folder.mkdir(parents=True, exist_ok=True)
        self.contexts.analyse(model, self.tokenizer)
        if self.contexts.blocks and self.state.is_main_process:
            write_json(self.folder / f"round-{number}.in_context.json", self.contexts.describe())
        drawn: dict[str, list[list[int]]] = {}
        file = self.folder / f"round-{number}.rank{self.state.process_index}.jsonl"
        title, silent = f"sampling {self.config.k} answers a prompt", not self.state.is_main_process
        with (
            open(file, "a", encoding="utf-8") as out,
            tqdm(total=len(mine), desc=title, unit="prompt", disable=silent) as bar,
        ):
            if out.tell():
                out.write("\n")  # behind a line that a kill may have cut off
            for group in calls:
                fresh = self._generate(model, group, number)
                for row in group:
                    if row.example.key not in drawn:
                        drawn[row.example.key] = fresh[row.example.key]
                        out.write(json.dumps(self._record(row, fresh[row.example.key])) + "\n")
                out.flush()
                bar.update(len(group))
        return _merged(drawn)

    def _record(self, row: TokenizedRow, samples: list[list[int]]) -> dict:
        texts = [{"text": self.tokenizer.decode(ids, skip_special_tokens=True), "ids": ids} for ids in samples]
        return {"prompt_key": row.example.key, "prompt": row.example.prompt, "samples": texts}

    def _generate(self, model, group: list[TokenizedRow], number: int) -> dict[str, list[list[int]]]:
        prompts = [self.contexts.encode(model, self.tokenizer, row.example) for row in group]
        names = [f"{self.seed}/{number}/{row.example.key}" for row in group]
        drawn = draw(model, self.tokenizer, prompts, names, self.config, self.config.k)
        return {row.example.key: [ids for ids, _ in own] for row, own in zip(group, drawn, strict=True)}


def flaw(ids: list[int], text: str, seen: set[str], unwanted: set[str]) -> str | None:
    """Why a sample is of no use as an anchor: empty, degenerate, duplicate, equal to a negative; None if it is fine."""
    if not text.strip():
        return "empty"
    if is_degenerate(ids):
        return "degenerate"
    if normal(text) in unwanted:
        return "equal to a negative"
    return "duplicate" if normal(text) in seen else None


def is_degenerate(ids: list[int]) -> bool:
    """Whether an answer runs in circles: under half of its runs of four tokens are distinct, or half is one token."""
    runs = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    repeats = len(runs) >= 8 and len(set(runs)) < len(runs) / 2
    return repeats or (len(ids) >= 8 and Counter(ids).most_common(1)[0][1] > len(ids) / 2)


def normal(text: str) -> str:
    """The text as it is compared with others: case and white space do not count."""
    return " ".join(text.lower().split())


def _merged(parts: dict) -> dict:
    """One dictionary of all ranks' entries."""
    return {key: value for part in gather_object([parts]) for key, value in part.items()}
