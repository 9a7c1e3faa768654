"""Samples of the policy's own: K answers a prompt, drawn in batches, filtered, kept in the run folder.

The draw of a prompt depends on the seed, the round, the prompt and k alone: every sample has its own stream of
uniform numbers and each token is read off the cumulative distribution. So batch size, world size and a
restart do not change what is drawn (but for ties within float rounding).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from align.data.ledger import Ledger
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.objectives import SAMPLE
from align.run import write_json
from align.scoring.head import causal_lm

if TYPE_CHECKING:
    from align.data.steps import Feed
    from align.negatives.in_context import Contexts
    from align.recipe import Sampling


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


def draw(
    model, tokenizer, prompts: list[list[int]], names: list[str], config: Sampling, k: int
) -> list[list[tuple[list[int], list[float]]]]:
    """`k` samples of each prompt: (token ids up to and including the end of the turn, log-prob of each).

    Log-probs are the model's own, whatever temperature and top-p it was sampled with. What is drawn depends on the
    name of the prompt (the seed, for instance, and its key), not on the other prompts of the call.
    """
    uniforms = [_uniforms(f"{name}/{index}", config.max_new_tokens) for name in names for index in range(k)]
    own = _OwnLogps()
    processors = [own, TemperatureLogitsWarper(config.temperature)]
    if config.top_p < 1:
        processors.append(TopPLogitsWarper(config.top_p))
    processors.append(_InverseCdf(torch.stack(uniforms), max(map(len, prompts))))
    answers = generate(model, tokenizer, prompts, config.max_new_tokens, processors, k)
    logps = own.of([ids[-1] for ids in answers], [len(ids) for ids in answers])
    samples = list(zip(answers, logps, strict=True))
    return [samples[start : start + k] for start in range(0, len(samples), k)]


def generate(
    model, tokenizer, prompts: list[list[int]], max_new_tokens: int, processors: list | None = None, k: int = 1
) -> list[list[int]]:
    """`k` answers to each of the prompts (token ids), as token ids up to and including the end-of-turn token.

    Takes the likeliest token at each step, after `processors`. Nothing of the model's own generation settings
    (repetition penalties and the like) enters: samples are to come from the policy itself.
    """
    device = model.get_input_embeddings().weight.device
    width, stops = max(map(len, prompts)), stop_ids(model, tokenizer)
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(stops)
    input_ids = torch.tensor([[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    attention = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=sorted(stops), pad_token_id=pad
    )
    with _as_generator(model, config), torch.no_grad():
        cache = _read_once(model, input_ids, attention, k) if k > 1 and width > 1 else {}
        output = model.generate(
            input_ids.repeat_interleave(k, 0), attention_mask=attention.repeat_interleave(k, 0),
            generation_config=config, logits_processor=processors or [], **cache,
        )  # fmt: skip
    return [_until_stop(ids, stops) for ids in output[:, width:].tolist()]


def _read_once(model, input_ids: torch.Tensor, attention: torch.Tensor, k: int) -> dict:
    """What `generate` needs to go on behind prompts that were read once for all their `k` answers.

    Of a model whose state is no plain cache of keys and values, nothing: it reads each prompt k times.
    """
    seen = attention[:, :-1]  # generate reads the last token, which the first answer token follows
    positions = (seen.cumsum(-1) - 1).clamp(min=0)
    read = model(input_ids[:, :-1], attention_mask=seen, position_ids=positions, use_cache=True, logits_to_keep=1)
    cache = getattr(read, "past_key_values", None)
    if type(cache) is not DynamicCache:
        return {}
    cache.batch_repeat_interleave(k)
    return {"past_key_values": cache}


@contextmanager
def _as_generator(model, config: GenerationConfig) -> Iterator[None]:
    """Evaluation mode, a cache, and `config` as the model's own (PEFT copies it to the base model), for a block."""
    holders = {id(holder): holder for holder in (model, causal_lm(model))}.values()
    before = [holder.generation_config for holder in holders]
    was_training, used_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        for holder in holders:
            holder.generation_config = config
        yield
    finally:
        for holder, own in zip(holders, before, strict=True):
            holder.generation_config = own
        model.config.use_cache = used_cache
        model.train(was_training)


def stop_ids(model, tokenizer) -> set[int]:
    """Tokens that end an answer: the tokenizer's and those of the model's generation settings."""
    configured = model.generation_config.eos_token_id
    more = configured if isinstance(configured, list) else [] if configured is None else [configured]
    return {tokenizer.eos_token_id, *more}


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


class _OwnLogps(LogitsProcessor):
    """Notes the log-prob of every token drawn; stands in front of the processors that change the distribution."""

    def __init__(self):
        self.before: torch.Tensor | None = None  # (samples, V) at the newest position
        self.chosen: list[torch.Tensor] = []  # (samples,) for each position before it

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.before is not None:
            self.chosen.append(self.before.gather(-1, input_ids[:, -1:])[:, 0])
        self.before = scores.float().log_softmax(-1)
        return scores

    def of(self, last: list[int], lengths: list[int]) -> list[list[float]]:
        """The log-probs of each sample. `last`: its last token; it may be the newest, which no call has followed."""
        final = self.before.gather(-1, torch.tensor(last, device=self.before.device)[:, None])[:, 0]
        table = torch.stack([*self.chosen, final], 1).tolist()
        return [row[:length] for row, length in zip(table, lengths, strict=True)]


_BLOCK = 256  # words


class _InverseCdf(LogitsProcessor):
    """Leaves one token: the one where the cumulative distribution passes the sample's next uniform number."""

    def __init__(self, uniforms: torch.Tensor, prompt_width: int):
        self.uniforms, self.prompt_width = uniforms, prompt_width  # (samples, max_new_tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Finds the block of words in which the wanted sum is passed, then the word: a cumsum of all is slow."""
        step = input_ids.shape[1] - self.prompt_width
        mass = (scores.float() - scores.max(-1, keepdim=True).values.float()).exp()  # (samples, V), not normalised
        blocks = F.pad(mass, (0, -mass.shape[-1] % _BLOCK)).unflatten(-1, (-1, _BLOCK))  # (samples, blocks, words)
        sums = blocks.sum(-1).double().cumsum(-1)  # (samples, blocks)
        wanted = self.uniforms[:, step : step + 1].to(sums) * sums[:, -1:]
        block = torch.searchsorted(sums, wanted, right=True).clamp(max=sums.shape[-1] - 1)
        before = F.pad(sums, (1, 0)).gather(-1, block)
        inside = blocks[torch.arange(len(blocks), device=block.device), block[:, 0]].double().cumsum(-1)
        word = torch.searchsorted(inside, wanted - before, right=True)
        # rounding may put the wanted sum behind the last word of the block that has any mass
        last = (inside < inside[:, -1:]).sum(-1, keepdim=True)
        token = block * _BLOCK + torch.minimum(word, last)
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)


def _uniforms(name: str, count: int) -> torch.Tensor:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
    return torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _until_stop(ids: list[int], stops: set[int]) -> list[int]:
    end = next((index + 1 for index, token in enumerate(ids) if token in stops), len(ids))
    return ids[:end]


def normal(text: str) -> str:
    """The text as it is compared with others: case and white space do not count."""
    return " ".join(text.lower().split())


def _merged(parts: dict) -> dict:
    """One dictionary of all ranks' entries."""
    return {key: value for part in gather_object([parts]) for key, value in part.items()}
