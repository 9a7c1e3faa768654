"""A model that answers: drawing answers token by token, the same ones whatever is drawn beside them.

Every sample has a stream of uniform numbers of its own, which its name decides, and each token is read off the
cumulative distribution. So the other prompts of a batch do not change what is drawn (but for ties within float
rounding).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from align import models, precision
from align.scoring.head import causal_lm

if TYPE_CHECKING:
    from align.negatives.options import Sampling
    from align.recipe import Recipe


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
