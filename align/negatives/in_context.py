"""What stands in front of a prompt while the policy samples: the recipe's instruction, and examples of answers.

Contrastive in-context learning (Gao and Das, AAAI 2024, https://arxiv.org/abs/2401.17390): the prompt shows wanted and
unwanted answers to other prompts; the model first says what sets them apart, and what it said is shown behind them. The
wording is ours, and so is one analysis for many prompts, where the paper makes one for each. Scoring knows nothing of
it: the policy learns from, and is judged on, answers to the bare prompt.

The training prompts are cut into two halves by their keys. A prompt is shown examples from the other half, never its
own answers, and a run needs two analyses.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.data import sources
from align.data.examples import Example
from align.data.ledger import Ledger
from align.data.messages import split_tools
from align.data.tokenize import encode_prompt
from align.errors import UserError
from align.generation import generate
from align.scoring.head import causal_lm

if TYPE_CHECKING:
    from align.negatives.options import Sampling
    from align.recipe import Recipe

_POOL = 500  # rows of each source from which examples are drawn
_WHERE = "sampling.in_context"
_TITLE = "Below are examples of answers."
_QUESTION = (
    "In one or two sentences: what do the wanted answers do that the unwanted ones do not, "
    "and what must an answer avoid?"
)
_REQUEST = {
    (True, True): "Answer as the wanted answers do, and avoid what the unwanted ones do.",
    (True, False): "Answer as the wanted answers do.",
    (False, True): "Avoid what the unwanted answers do.",
}


def load(recipe: Recipe) -> Contexts:
    """What a recipe shows while it samples. Raises UserError if its rows hold too few examples."""
    examples: list[Example] = []
    for source in recipe.data.sources if recipe.sampling.in_context else ():
        read = sources.read(
            source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=Ledger(), most=_POOL
        )  # fmt: skip
        if not source.path.startswith(sources.BUILTIN):
            read = sources.split_holdout(read, recipe.eval.holdout)[0]
        examples += read
    return Contexts(recipe.sampling, examples, recipe.train.seed)


class Contexts:
    """The instruction of each prompt. Raises UserError if `examples` are too few for what `config` shows."""

    def __init__(self, config: Sampling, examples: Sequence[Example], seed: int):
        self.config, self.blocks, self.analyses = config, [], ["", ""]
        if config.in_context is None:
            return
        order = sorted(examples, key=lambda one: hashlib.sha256(f"{seed}/in-context/{one.key}".encode()).digest())
        for half in (0, 1):
            self.blocks.append(self._block([one for one in order if _half(one.key) != half]))

    def analyse(self, model, tokenizer) -> None:
        """Has the model say what sets the examples apart, at its likeliest; every rank comes to the same."""
        if not self.blocks or not self.config.in_context.analysis:
            return
        for half, block in enumerate(self.blocks):
            ids = encode_prompt(tokenizer, f"{block}\n\n{_QUESTION}")
            self._check_room(model, len(ids), self.config.in_context.analysis)
            (said,) = generate(model, tokenizer, [ids], self.config.in_context.analysis)
            self.analyses[half] = " ".join(tokenizer.decode(said, skip_special_tokens=True).split())

    def instruction(self, key: str) -> str | None:
        """What is said in front of the prompt with this key."""
        if not self.blocks:
            return self.config.instruction
        shown, analysis = self.config.in_context, self.analyses[_half(key)]
        parts = [self.config.instruction, self.blocks[_half(key)], analysis and f"What sets them apart: {analysis}"]
        return "\n\n".join([*filter(None, parts), _REQUEST[shown.positives > 0, shown.negatives > 0]])

    def encode(self, model, tokenizer, example: Example) -> list[int]:
        """Token ids of the prompt with what is said in front of it. Raises UserError if the model cannot take it."""
        ids = encode_prompt(tokenizer, example.prompt, self.instruction(example.key))
        self._check_room(model, len(ids), self.config.max_new_tokens)
        return ids

    def describe(self) -> list[dict]:
        """The examples and analyses of both halves, to be kept beside what was sampled; empty without examples."""
        pairs = zip(self.blocks, self.analyses, strict=False)
        return [{"half": half, "examples": block, "analysis": said} for half, (block, said) in enumerate(pairs)]

    def _check_room(self, model, prompt: int, answer: int) -> None:
        most = getattr(causal_lm(model).config, "max_position_embeddings", None)
        if self.blocks and most is not None and prompt + answer > most:
            what = f"{prompt} tokens of examples and prompt and {answer} of answer are over the model's {most}"
            raise UserError(_WHERE, what, "lower its characters, positives or negatives")

    def _block(self, examples: Sequence[Example]) -> str:
        """The examples as text; rows with answers of both kinds come first."""
        shown = self.config.in_context
        left = {"positive": shown.positives, "negative": shown.negatives}
        wanted = [role for role, count in left.items() if count]
        blocks = []
        for example in sorted(examples, key=lambda one: sum(not one.texts(role) for role in wanted)):
            said = {role: example.texts(role)[0] for role in wanted if left[role] and example.texts(role)}
            if said:
                lines = [f"Prompt: {_cut(_asked(example), shown.characters)}"]
                lines += [f"{_NAMES[role]}: {_cut(text, shown.characters)}" for role, text in said.items()]
                blocks.append("\n".join(lines))
                left |= {role: left[role] - 1 for role in said}
        for role in wanted:
            if left[role]:
                what = f"asks for more {role}s than half of the training rows have (the first {_POOL} of each source)"
                raise UserError(f"{_WHERE}.{role}s", what, "ask for fewer, or give more rows")
        return "\n\n".join([_TITLE, *blocks])


_NAMES = {"positive": "Wanted answer", "negative": "Unwanted answer"}


def _half(key: str) -> int:
    return int(key, 16) % 2


def _asked(example: Example) -> str:
    """The prompt in one text."""
    prompt, _ = split_tools(example.prompt)
    return prompt if isinstance(prompt, str) else "\n".join(message[1] for message in prompt)


def _cut(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."
