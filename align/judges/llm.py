"""Judges steps by a language model behind an OpenAI-compatible endpoint. What it replies is read strictly."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from align.data.messages import split_tools
from align.errors import UserError
from align.judges import Answer, Scores
from align.judges.endpoint import Endpoint, NoReply

if TYPE_CHECKING:
    from align.judges.options import LlmJudge as Options

# The published prompt is not known; this one asks for what the paper's error rules ask for.
INSTRUCTION = (
    "You check solutions step by step. For every step say how sure you are, from 0 to 1, that it is right: what it "
    "says is true, follows from the problem and from right steps before it, and helps. A step that uses a wrong result "
    "of an earlier step is wrong. Reply with one JSON object and nothing else: "
    '{"steps": [{"step": 1, "correct": 0.9}, ...]}, one entry a step, in order.'
)
_FENCE = re.compile(r"\A```(?:json)?\s*\n(.*)\n```\Z", re.DOTALL)
_USELESS_REPLIES = 3  # times an answer is asked about before it is given up
_FAILURES = 5  # answers in a row without a usable reply, after which the endpoint is taken to be broken


class LlmJudge:
    name = "llm"

    def __init__(self, endpoint: Endpoint, options: Options):
        self.endpoint, self.options, self.good = endpoint, options, options.good
        self.made_by = {"url": options.url, "model": options.model, "instruction": INSTRUCTION, "temperature": 0}
        self.failures = 0  # answers in a row

    def score(self, answers: Sequence[Answer]) -> list[Scores]:
        """Scores of the steps; all None for an answer that no usable reply was had on.

        Raises UserError where several in a row have none: then the endpoint is at fault.
        """
        found: list[Scores] = []
        with ThreadPoolExecutor(self.options.parallel) as pool:
            for scores, reason in pool.map(self._score, answers):
                self.failures = self.failures + 1 if reason else 0
                if self.failures >= _FAILURES:
                    pool.shutdown(cancel_futures=True)
                    what = f"{self.options.url} gave no usable reply on {_FAILURES} answers in a row: {reason}"
                    raise UserError("judges.llm", what, "mend it and run again: what was judged is kept")
                found.append(scores)
        return found

    def _score(self, answer: Answer) -> tuple[Scores, str | None]:
        """(scores, why there are none)"""
        reason = None
        for attempt in range(_USELESS_REPLIES):
            try:
                return read_reply(self.endpoint.reply(_messages(answer), attempt), len(answer.ends)), None
            except NoReply as error:
                return [None] * len(answer.ends), str(error)
            except ValueError as error:
                reason = str(error)
        return [None] * len(answer.ends), reason


def read_reply(text: str, count: int) -> list[float]:
    """The scores of `count` steps in a reply. Raises ValueError for everything but what was asked for."""
    fenced = _FENCE.match(text.strip())
    try:
        steps = json.loads(fenced[1] if fenced else text)["steps"]
        numbers = [step["step"] for step in steps]
        scores = [step["correct"] for step in steps]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("the reply is not the JSON that was asked for") from None
    if numbers != list(range(1, count + 1)):
        raise ValueError(f"the reply does not judge the steps 1 to {count}, each once")
    if not all(isinstance(score, bool | int | float) and 0 <= score <= 1 for score in scores):
        raise ValueError("the reply holds a score that is no number from 0 to 1")
    return [float(score) for score in scores]


def _messages(answer: Answer) -> list[dict]:
    messages, _ = split_tools(answer.example.prompt)
    problem = messages if isinstance(messages, str) else "\n\n".join(f"{one[0]}: {one[1]}" for one in messages)
    steps = "\n".join(f"Step {number}: {step.strip()}" for number, step in enumerate(answer.steps, 1))
    content = f"Problem:\n{problem}\n\nSolution:\n{steps}"
    return [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": content}]
