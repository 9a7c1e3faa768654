"""Judges steps by a process reward model: a head that classifies tokens, or the word a language model goes on with.

The model reads prompt and steps with a separator behind each, as in its training; the score of a step is the
probability of "right" at the last token of its separator. All steps are read in one forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from align.data.tokenize import encode_prompt
from align.errors import UserError, shorten
from align.judges import Answer, Scores

if TYPE_CHECKING:
    from align.judges.options import PrmJudge as Options

_WHERE = "judges.prm"


class PrmJudge:
    """Raises UserError where the model lacks the head that is asked for."""

    name = "prm"

    def __init__(self, model, tokenizer, options: Options):
        self.model, self.tokenizer, self.options, self.good = model.eval(), tokenizer, options, options.good
        self.words = None
        if options.good_token is not None:
            wanted = [options.good_token] + ([options.bad_token] if options.bad_token is not None else [])
            self.words = [self._one_token(word) for word in wanted]
        elif model.config.num_labels not in (1, 2):
            what = f"{shorten(options.path)} tells {model.config.num_labels} classes of tokens apart"
            raise UserError(f"{_WHERE}.path", what, "a process reward model has 1 or 2")
        if not self._separator():
            raise UserError(f"{_WHERE}.separator", "makes no token", "give the separator of the model's training")
        self.made_by = {"path": options.path, "separator": options.separator, "words": self.words}

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """Probabilities of "right"; None for steps behind the longest input of the model."""
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Scores:
        ids, places = list(encode_prompt(self.tokenizer, answer.example.prompt)), []
        for step in answer.steps:
            ids += self.tokenizer(step.strip(), add_special_tokens=False)["input_ids"] + self._separator()
            places.append(len(ids) - 1)
        room = getattr(self.model.config, "max_position_embeddings", None) or len(ids)
        read = [place for place in places if place < room]
        if not read:
            return [None] * len(places)
        with torch.no_grad():
            output = self.model(torch.tensor([ids[:room]], device=self.model.device)).logits[0, read].float()
        return [*self._right(output).tolist(), *[None] * (len(places) - len(read))]

    def _right(self, logits: torch.Tensor) -> torch.Tensor:
        """(steps,) the probability of "right" from (steps, classes or words)."""
        if self.words is not None:
            return (
                logits[:, self.words].softmax(-1)[:, 0]
                if len(self.words) == 2
                else logits.softmax(-1)[:, self.words[0]]
            )
        return logits[:, 0].sigmoid() if logits.shape[-1] == 1 else logits.softmax(-1)[:, 1]

    def _separator(self) -> list[int]:
        return self.tokenizer(self.options.separator, add_special_tokens=False)["input_ids"]

    def _one_token(self, word: str) -> int:
        ids = self.tokenizer(word, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            what = f"{shorten(word)!r} is {len(ids)} tokens of {shorten(self.options.path)}"
            raise UserError(f"{_WHERE}.good_token", what, "give words that are one token each")
        return ids[0]
