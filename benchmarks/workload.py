"""What both sides train on: synthetic rows of real words, their lengths, and the files that say the same to both.

Lengths are in tokens of the model's own tokenizer, the chat template's and the end of the turn included.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import random
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from align import models, yaml_lines
from align import recipe as recipes
from align.data import layout as layouts
from align.data.examples import Example, Response
from align.data.ledger import Ledger
from align.data.options import Data
from align.data.plan import StepPlan
from align.data.tokenize import TokenizedRow, encode_prompt, encode_response, encode_row
from align.recipe import Model

BUILTIN_FOLDER = Path(models.__file__).parent / "data" / "builtin"
MAX_LENGTH = 2560  # of a prompt and a response together: nothing is cut


@dataclasses.dataclass(frozen=True)
class Lengths:
    """A log-normal distribution of token counts, clipped. Without sigma all are the median."""

    median: int
    sigma: float
    least: int
    most: int

    def draw(self, count: int, rng: random.Random) -> list[int]:
        """`count` lengths in random order, one from each of as many equally likely parts of the distribution.

        So that a few rows have the distribution's median, too.
        """
        normal = statistics.NormalDist()
        parts = [normal.inv_cdf(max((part + rng.random()) / count, 1e-9)) for part in range(count)]
        rng.shuffle(parts)
        drawn = (round(self.median * math.exp(self.sigma * part)) for part in parts)
        return [min(max(length, self.least), self.most) for length in drawn]

    def halved(self) -> Lengths:
        return Lengths(self.median // 2, self.sigma, self.least, self.most // 2)


# Medians as in HH, https://arxiv.org/abs/2204.05862; the longest make 1024 together, TRL's default `max_length`.
PROMPT = Lengths(160, 0.7, 16, 640)
RESPONSE = Lengths(100, 0.7, 8, 384)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a case trains. Both sides read the same recipe, written from this."""

    model: Path  # the prepared folder, see `prepare_model`
    responses: int = 2  # of a prompt: one positive, the rest negatives
    prompts_per_step: int = 8
    steps: int = 4
    precision: str = "fp32"
    lora: int | None = None  # rank; None: all weights train
    layout: str | None = None  # None: the recipe's default
    tokens_per_device: int = 896  # of our micro-batches
    most_pairs: int = 2  # of TRL's micro-batches: its default of 8, and 4, can take over 18 GB at these lengths
    trl_as_ours: bool = False  # TRL's process with `align.processor`'s settings, too; else as its users have it
    learning_rate: float = 1e-6  # TRL's default for DPO
    seed: int = 0
    prompt: Lengths = PROMPT
    response: Lengths = RESPONSE

    @property
    def pairs_per_step(self) -> int:
        return self.prompts_per_step * (self.responses - 1)

    @property
    def pairs_per_batch(self) -> int:
        """TRL's batch: `most_pairs`, or the most below it that cut a step into equal batches."""
        return next(size for size in range(self.most_pairs, 0, -1) if self.pairs_per_step % size == 0)


def prepare_model(path: str, folder: Path) -> Path:
    """A folder with the model's files whose chat template writes no white space behind an answer.

    TRL scores what a template writes behind the end of a turn (a newline, mostly), this project does not: without
    it both score the same tokens.
    """
    source = models.fetch_embedded() if path == models.EMBEDDED else Path(path).resolve()
    tokenizer = models.load_tokenizer(Model(path=str(source)))
    folder.mkdir()
    for pattern in ("config.json", "generation_config.json", "*.safetensors", "*.safetensors.index.json"):
        for file in source.glob(pattern):
            os.symlink(file, folder / file.name)
    tokenizer.chat_template = (
        "{%- set rendered -%}" + tokenizer.chat_template + "{%- endset -%}"
        "{% if add_generation_prompt %}{{ rendered }}{% else %}{{ rendered.rstrip() }}{% endif %}"
    )
    tokenizer.save_pretrained(folder)
    return folder


@functools.cache
def words() -> tuple[str, ...]:
    """The lower-case words of the builtin data sets, sorted."""
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(BUILTIN_FOLDER.glob("*.jsonl")))
    return tuple(sorted(set(re.findall(r"(?<= )[a-z]+(?= )", text))))


class Writer:
    """Writes texts of a wanted number of tokens. Deterministic in `seed`."""

    def __init__(self, tokenizer, seed: int):
        self.tokenizer, self.rng, self.words = tokenizer, random.Random(seed), words()
        spaced = tokenizer([f" {word}" for word in self.words], add_special_tokens=False)["input_ids"]
        self.cost = [len(ids) for ids in spaced]
        self.shortest = min(range(len(self.words)), key=lambda index: self.cost[index])
        one = self.words[self.shortest]
        alone = len(tokenizer(one, add_special_tokens=False)["input_ids"])
        prompt_ids = encode_prompt(tokenizer, one)
        self.prompt_extra = len(prompt_ids) - alone  # what the template adds
        self.response_extra = len(encode_response(tokenizer, one, prompt_ids, one)) - alone

    def text(self, tokens: int) -> str:
        """Words of about so many tokens in all, at least one."""
        chosen = [self.rng.randrange(len(self.words))]
        left = tokens - self.cost[chosen[0]]
        while left >= self.cost[self.shortest]:
            index = self.rng.randrange(len(self.words))
            index = index if self.cost[index] <= left else self.shortest
            chosen.append(index)
            left -= self.cost[index]
        return " ".join(self.words[index] for index in chosen)

    def row(self, prompt: int, responses: Sequence[int]) -> Example:
        """A prompt with a positive and negatives of so many tokens each."""
        texts = [self.text(length - self.response_extra) for length in responses]
        roles = ["positive"] + ["negative"] * (len(responses) - 1)
        answers = tuple(Response(text, role) for text, role in zip(texts, roles, strict=True))
        return Example(self.text(prompt - self.prompt_extra), answers, "benchmark", "benchmark")


@dataclasses.dataclass(frozen=True)
class Workload:
    """The rows of a case, step by step, and where they lie as files."""

    setup: Setup
    steps: list[list[TokenizedRow]]
    recipe: Path  # of our side, which TRL's side reads for its hyper-parameters
    store: Path  # of the reference's log-probs
    pairs: Path  # the same rows in the order of the steps, as TRL's conversational pairs

    def digests(self) -> list[str]:
        """What identifies the tokens of each row, in the order of the steps."""
        return [digest(row) for step in self.steps for row in step]


def digest(row: TokenizedRow) -> str:
    return digest_of(row.prompt_ids, [response.ids for response in row.responses])


def digest_of(prompt_ids: Sequence[int], responses: Sequence[Sequence[int]]) -> str:
    """A short hash of a prompt's tokens and its responses' tokens, the positive first."""
    text = json.dumps([list(prompt_ids), [list(ids) for ids in responses]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def make(setup: Setup, folder: Path, *, rows: int | None = None, prompts: Sequence[int] = ()) -> Workload:
    """Draws the rows of a case and writes them, and the recipe, to `folder`.

    `rows` is how many there are in all, if more than the steps use. `prompts` are prompt lengths that the steps take
    in turn, in place of the setup's. Raises UserError if the recipe cannot be.
    """
    folder.mkdir(parents=True)
    tokenizer = models.load_tokenizer(Model(path=str(setup.model)))
    writer, used = Writer(tokenizer, setup.seed), setup.steps * setup.prompts_per_step
    count, each = max(used, rows or 0), setup.responses
    asked = [prompts[index // setup.prompts_per_step % len(prompts)] for index in range(count)] if prompts else None
    asked = asked or setup.prompt.draw(count, writer.rng)
    answered = setup.response.draw(count * each, writer.rng)
    examples = [writer.row(asked[index], answered[index * each : (index + 1) * each]) for index in range(count)]
    encoded = [_encoded(tokenizer, example) for example in examples[:used]]
    steps = [encoded[start : start + setup.prompts_per_step] for start in range(0, used, setup.prompts_per_step)]
    _write_lines(folder / "rows.jsonl", map(_as_row, _in_file_order(examples, setup)))
    _write_lines(folder / "pairs.jsonl", (pair for example in examples[:used] for pair in _as_pairs(example)))
    recipe = _recipe(setup, folder, steps)
    (folder / "recipe.yaml").write_text(yaml_lines.dump(recipe), encoding="utf-8")
    recipes.load(folder / "recipe.yaml")  # so that a wrong option is told at once
    return Workload(setup, steps, folder / "recipe.yaml", folder / "store", folder / "pairs.jsonl")


def _encoded(tokenizer, example: Example) -> TokenizedRow:
    return encode_row(tokenizer, example, roles={1, -1}, max_length=MAX_LENGTH, ledger=Ledger())


def _in_file_order(examples: list[Example], setup: Setup) -> list[Example]:
    """The rows placed so that our shuffled plan meets them in the order they are given in."""
    plan = StepPlan(
        [1.0] * len(examples), prompts_per_step=setup.prompts_per_step, epochs=1, max_steps=setup.steps, seed=setup.seed
    )
    visited = [index for step in range(len(plan)) for index in plan.rows(step)]
    others = iter(examples[len(visited) :])
    at = dict(zip(visited, examples, strict=False))
    return [at[index] if index in at else next(others) for index in range(len(examples))]


def _recipe(setup: Setup, folder: Path, steps: list[list[TokenizedRow]]) -> dict:
    """With the setup's tokens_per_device, or what the largest row asks for if that is more."""
    data = {"sources": [str(folder / "rows.jsonl")], "max_length": MAX_LENGTH}
    data |= {"layout": setup.layout} if setup.layout else {}
    largest = max(layouts.size([row], setup.layout or Data().layout) for step in steps for row in step)
    return {
        "name": "benchmark",
        "model": {"path": str(setup.model), "adapter": {"rank": setup.lora} if setup.lora else None},
        "data": data,
        "reference": {"store": str(folder / "store")},
        "objective": {"name": "dpo", "beta": 0.1},
        "train": {
            "learning_rate": setup.learning_rate,
            "max_steps": setup.steps,
            "prompts_per_step": setup.prompts_per_step,
            "tokens_per_device": max(setup.tokens_per_device, math.ceil(largest / layouts.ROOM[layouts.ALL])),
            "precision": setup.precision,
            "seed": setup.seed,
        },
        "eval": {"sources": [], "holdout": 0.0, "generate": 0},
        "output": str(folder / "run"),
    }


def _as_row(example: Example) -> dict:
    texts = {role: list(example.texts(role)) for role in ("positive", "negative")}
    return {"prompt": example.prompt, "positives": texts["positive"], "negatives": texts["negative"]}


def _as_pairs(example: Example) -> Iterator[dict]:
    """The positive with each negative, as messages."""
    (positive,) = example.texts("positive")
    for negative in example.texts("negative"):
        texts = {"prompt": ("user", example.prompt), "chosen": ("assistant", positive)}
        texts |= {"rejected": ("assistant", negative)}
        yield {key: [{"role": role, "content": text}] for key, (role, text) in texts.items()}


def _write_lines(file: Path, rows: Iterator[dict]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
