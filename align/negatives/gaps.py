"""Whether an answer is really worse than the positives of its prompt: by a margin, a verifier or a judge.

* `margin`: the information that was taken away must speak for the positives more than for the answer. With
  r(y) = (log p(y | full prompt) - log p(y | poor prompt)) / tokens of y under the policy, the gap is the mean r of the
  positives minus r of the answer, in nats a token. The poor prompt is the one without evidence and with a vague
  instruction, whatever the condition of the answer, so that conditions can be compared. A policy's own answer is
  likelier than what people write; r asks what the prompt adds to each. It is no judgement of what is true.
* `verifier`: the answer must be wrong by comparison with the positives; 1 wrong, 0 right, none where it cannot tell.
* `judge`: mean score of the positives minus that of the answer, each judged whole, as one step; the mean of all judges.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from align.data.examples import Example, Prompt, Response
from align.data.ledger import Ledger
from align.data.tokenize import PromptTooLong, TokenizedRow, encode_row
from align.generation import Policy
from align.judges import Answer, Judge
from align.judges.verifiers import Verify
from align.objectives import NEGATIVE, POSITIVE
from align.scoring.answers import Head, answer_logps, layout_for

_TOKENS_AT_ONCE = 4096


class Case(NamedTuple):
    """A full prompt with its positives, its poorest form, and answers to compare with them."""

    example: Example
    poor: Prompt | None
    answers: list[str]


class Gap(Protocol):
    """What measures gaps."""

    name: str
    made_by: dict  # what its gaps depend on

    def measure(self, cases: Sequence[Case]) -> list[list[float | None]]:
        """The gap of each answer of each case; None where none can be told."""


class Margin:
    """By the policy's log-probs under the full and the poor prompt."""

    name = "margin"

    def __init__(self, policy: Policy, max_length: int, in_bf16: bool):
        self.policy, self.max_length, self.in_bf16 = policy, max_length, in_bf16
        self.layout = layout_for(policy.model, max_length)
        self.made_by = {"by": self.name, "weights_sha256": policy.weights_sha256, "max_length": max_length}

    def measure(self, cases: Sequence[Case]) -> list[list[float | None]]:
        rows = [(self._row(case, case.example.prompt), self._row(case, case.poor)) for case in cases]
        usable = [index for index, (whole, poor) in enumerate(rows) if whole is not None and poor is not None]
        flat = [row for index in usable for row in rows[index]]
        if not flat:
            return [[None] * len(case.answers) for case in cases]
        heads = {"policy": (Head(self.policy.model, 0), flat)}
        sums = answer_logps(heads, layout=self.layout, tokens_at_once=_TOKENS_AT_ONCE, in_bf16=self.in_bf16)["policy"]
        found: list[list[float | None]] = [[None] * len(case.answers) for case in cases]
        for place, index in enumerate(usable):
            lengths = [len(one.ids) for one in flat[2 * place].responses]
            whole, poor = (one.double() for one in sums[2 * place : 2 * place + 2])
            gains = ((whole - poor) / torch.tensor(lengths)).tolist()
            count = len(gains) - len(cases[index].answers)  # the positives come first
            found[index] = [sum(gains[:count]) / count - gain for gain in gains[count:]]
        return found

    def _row(self, case: Case, prompt: Prompt | None) -> TokenizedRow | None:
        """Positives and answers under a prompt; None where one of them cannot be scored whole."""
        if prompt is None or not case.answers:
            return None
        answers = tuple(Response(text, "negative") for text in case.answers)
        example = dataclasses.replace(case.example, prompt=prompt, responses=(*case.example.responses, *answers))
        ledger = Ledger()
        try:
            row = encode_row(
                self.policy.tokenizer, example, roles={POSITIVE, NEGATIVE}, max_length=self.max_length, ledger=ledger
            )
        except PromptTooLong:
            return None
        whole = not ledger.dropped["response truncated"] and len(row.responses) == len(example.responses)
        return row if whole else None


class Verified:
    """By a verifier."""

    name = "verifier"

    def __init__(self, verify: Verify, options: dict):
        self.verify, self.made_by = verify, {"by": self.name, "verifier": options}

    def measure(self, cases: Sequence[Case]) -> list[list[float | None]]:
        verdicts = [[self.verify(case.example, text).is_right for text in case.answers] for case in cases]
        return [[None if is_right is None else float(not is_right) for is_right in own] for own in verdicts]


class Judged:
    """By judges of whole answers."""

    name = "judge"

    def __init__(self, judges: Sequence[Judge]):
        self.judges = judges
        self.made_by = {"by": self.name, "judges": {one.name: one.made_by for one in judges}}

    def measure(self, cases: Sequence[Case]) -> list[list[float | None]]:
        found: list[list[float | None]] = [[None] * len(case.answers) for case in cases]
        by_judge = [judge_gaps(judge, cases) for judge in self.judges]
        for index in range(len(cases)):
            for place in range(len(cases[index].answers)):
                gaps = [gap for own in by_judge if (gap := own[index][place]) is not None]
                if len(gaps) == len(self.judges):
                    found[index][place] = sum(gaps) / len(gaps)
        return found


def judge_gaps(judge: Judge, cases: Sequence[Case]) -> list[list[float | None]]:
    """The gap of each answer of each case by one judge; None where it has no score."""
    texts = [[*case.example.texts("positive"), *case.answers] if case.answers else [] for case in cases]
    flat = [whole(case.example, text) for case, own in zip(cases, texts, strict=True) for text in own]
    scores, found = iter(judge.score(flat)), []
    for case, own in zip(cases, texts, strict=True):
        values = [next(scores)[0] for _ in own]
        count = len(own) - len(case.answers)
        good = None if None in values[:count] or not count else sum(values[:count]) / count
        found.append([None if good is None or value is None else good - value for value in values[count:]])
    return found


def whole(example: Example, text: str) -> Answer:
    """An answer as one step."""
    return Answer(example, text, (len(text),))
