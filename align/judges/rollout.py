"""Judges a step by answers continued from its end: the share of them that come out right. Needs no other model.

Math-Shepherd's estimate (arXiv 2312.08935). What it tells is whether the answer can still be saved, by this policy: the
steps before the first mistake. A right step behind a mistake scores low.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

from align import generation
from align.data.templates import prompt_text
from align.judges import Answer, Scores
from align.judges.verifiers import Verify
from align.negatives.options import Sampling


class RolloutJudge:
    """Continues from the end of each step but the last `n` times; the last is judged by the answer itself."""

    name = "rollout"

    def __init__(self, model, tokenizer, verify: Verify, config: Sampling, *, n: int, good: float, seed: int):
        self.model, self.tokenizer, self.verify = model, tokenizer, verify
        self.config, self.n, self.good, self.seed = config, n, good, seed
        self.made_by = {"continuations": n, "seed": seed, "sampling": dataclasses.asdict(config)}

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """Scores of the steps; None where no continuation could be told right from wrong."""
        begun: dict[tuple[str, str], Answer] = {}  # (prompt, beginning) -> an answer that begins so: each once
        for answer in answers:
            for end in answer.ends[:-1]:
                begun.setdefault((answer.example.key, answer.text[:end]), answer)
        shares, places = {}, list(begun)
        per_call = max(1, self.config.batch_size // self.n)
        for start in range(0, len(places), per_call):
            part = places[start : start + per_call]
            shares.update(zip(part, self._shares(part, [begun[place] for place in part]), strict=True))
        return [
            [*(shares[answer.example.key, answer.text[:end]] for end in answer.ends[:-1]), self._last(answer)]
            for answer in answers
        ]

    def _last(self, answer: Answer) -> float | None:
        is_right = self.verify(answer.example, answer.text).is_right
        return None if is_right is None else float(is_right)

    def _shares(self, places: list[tuple[str, str]], answers: list[Answer]) -> list[float | None]:
        prompts = [self._ids(answer, text) for answer, (_, text) in zip(answers, places, strict=True)]
        names = [f"{self.seed}/judge/{key}/{hashlib.sha256(text.encode()).hexdigest()}" for key, text in places]
        drawn = generation.draw(self.model, self.tokenizer, prompts, names, self.config, self.n)
        shares: list[float | None] = []
        for answer, (_, text), samples in zip(answers, places, drawn, strict=True):
            ends = [text + self.tokenizer.decode(ids, skip_special_tokens=True) for ids, _ in samples]
            known = [found for end in ends if (found := self.verify(answer.example, end).is_right) is not None]
            shares.append(sum(known) / len(known) if known else None)
        return shares

    def _ids(self, answer: Answer, text: str) -> list[int]:
        begun = prompt_text(self.tokenizer, answer.example.prompt, self.config.instruction) + text
        bare = self.tokenizer(begun, add_special_tokens=False)["input_ids"]
        return bare if self.tokenizer.chat_template is not None else self.tokenizer(begun)["input_ids"]
