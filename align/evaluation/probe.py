"""What a subject is asked: the log-probs of answers and its own greedy answers, nothing of it computed twice.

Measures that ask for the same rows share one pass of the models.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from tqdm import tqdm

from align.data import nat
from align.data.examples import Example, Prompt
from align.data.ledger import Ledger
from align.data.templates import TemplateRefuses
from align.data.tokenize import PromptTooLong, TokenizedRow, encode_prompt, encode_row
from align.errors import UserError, shorten
from align.evaluation.settings import Settings
from align.evaluation.subject import POLICY, Subject
from align.generation import generate
from align.objectives import NEGATIVE, POSITIVE
from align.scoring.answers import Head, answer_logps
from align.scoring.head import causal_lm
from align.scoring.routing import routing_of

SUM, PER_TOKEN = "sum", "per token"
SPELT = {SUM: "by sum", PER_TOKEN: "per token"}  # in the names of metrics
TOKENS_AT_ONCE, ROWS_AT_ONCE, PROMPTS_AT_ONCE = 4096, 64, 16
QUESTIONS = "rows with right and wrong answers"
NO_SETTINGS = Settings()


@dataclass(frozen=True)
class Options:
    """The log-probs of all answers of some rows."""

    logps: dict[str, list[np.ndarray]]  # head -> for each row (K,) in nats
    lengths: list[np.ndarray]  # (K,) tokens
    is_right: list[np.ndarray]  # (K,) bool
    places: list[str]
    sources: list[str] = field(default_factory=list)  # as rows name them

    def scores(self, weights: dict[str, float], how: str) -> list[np.ndarray]:
        """For each row (K,) a weighted sum of heads, by `how` it is summed over tokens."""
        found = []
        for index, lengths in enumerate(self.lengths):
            score = sum(weight * self.logps[head][index] for head, weight in weights.items())
            found.append(score / lengths if how == PER_TOKEN else score)
        return found

    def correct(self, weights: dict[str, float], how: str) -> np.ndarray:
        """(Q,) bool: the questions whose best right answer is scored above every wrong one; a tie is an error."""
        rows = zip(self.scores(weights, how), self.is_right, strict=True)
        return np.array([score[right].max() > score[~right].max() for score, right in rows])

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return float(np.mean([right.mean() for right in self.is_right]))


class Probe:
    """Asks one subject, and remembers what it said."""

    def __init__(self, subject: Subject, settings: Settings = NO_SETTINGS):
        self.subject, self.settings = subject, settings
        self._logps: dict[Example, dict[str, np.ndarray]] = {}  # head -> (K,)
        self._answers: dict[tuple[str, Example], list[int]] = {}  # (head, example) -> token ids

    def rows(
        self, examples: Sequence[Example], ledger: Ledger, where: str = "--data", needs: str = QUESTIONS
    ) -> list[TokenizedRow]:
        """The rows in tokens; what cannot be scored whole is counted. Raises UserError if nothing is left."""
        encoded = [_encode(self.subject, example, ledger) for example in examples]
        rows = [row for row in encoded if row is not None]
        ledger.used = len(rows)
        if not rows:
            raise unusable(ledger, where, needs)
        return rows

    def options(
        self, examples: Sequence[Example], ledger: Ledger, where: str = "--data", needs: str = QUESTIONS
    ) -> Options:
        """All answers under all heads of the subject. Raises UserError if no row can be scored."""
        rows = self.rows(examples, ledger, where, needs)
        self._score([row for row in rows if row.example not in self._logps])
        own = [self._logps[row.example] for row in rows]
        return Options(
            {name: [one[name] for one in own] for name in self.subject.heads},
            [np.array([len(one.ids) for one in row.responses]) for row in rows],
            [np.array([one.role == POSITIVE for one in row.responses]) for row in rows],
            [str(row.example.place) for row in rows],
            [row.example.source for row in rows],
        )

    def asked(self, head: str, rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
        """The rows as a head is asked: under NAT the policy is asked behind the prompt of success."""
        if self._prefix(head) is None:
            return list(rows)
        how = {"roles": {POSITIVE, NEGATIVE}, "max_length": 1 << 30, "ledger": Ledger()}
        moved = [dataclasses.replace(row.example, prompt=self._prompt(head, row.example)) for row in rows]
        return [encode_row(self.subject.tokenizer, example, **how) for example in moved]

    def answers(
        self, examples: Sequence[Example], ledger: Ledger, where: str
    ) -> tuple[list[Example], dict[str, list[list[int]]]]:
        """(the examples whose prompts can be asked, head -> the token ids of its greedy answer to each)."""

        def write(model, prompts: list[list[int]], part: Sequence[Example]) -> list[list[int]]:
            return generate(model, self.subject.tokenizer, prompts, self.settings.max_new_tokens)

        examples, found = self.askable(examples, ledger, where), {}
        for name in self.subject.heads:
            missing = [example for example in examples if (name, example) not in self._answers]
            answers = self.written(name, missing, write, PROMPTS_AT_ONCE)
            self._answers |= {(name, one): ids for one, ids in zip(missing, answers, strict=True)}
            found[name] = [self._answers[name, example] for example in examples]
        return examples, found

    def askable(self, examples: Sequence[Example], ledger: Ledger, where: str) -> list[Example]:
        """The examples, each prompt once, behind whose prompts an answer fits. Raises UserError if there are none."""
        found: dict[str, Example] = {}
        for example in examples:
            try:
                longest = max(len(self._prompt_ids(head, example)) for head in self.subject.heads)
            except TemplateRefuses as error:
                ledger.drop("the chat template refuses it", example.place, shorten(error.what, 80))
                continue
            if longest + self.settings.max_new_tokens > self.subject.max_length:
                ledger.drop("prompt and answer are too long for data.max_length of the run", example.place)
            elif example.key in found:
                ledger.drop("a prompt that was there before", example.place)
            else:
                found[example.key] = example
        ledger.used = len(found)
        if not found:
            raise unusable(ledger, where, "prompts that leave room for an answer")
        return list(found.values())

    def written(self, name: str, examples: Sequence[Example], write: Callable, at_once: int) -> list:
        """What `write(model, prompts (token ids), examples)` gives for each example, asking one head."""
        prompts = [self._prompt_ids(name, example) for example in examples]
        order = sorted(range(len(examples)), key=lambda index: len(prompts[index]), reverse=True)  # little padding
        found: list = [None] * len(examples)
        with (
            as_head(self.subject.heads[name], self.subject.in_bf16) as model,
            _bar(len(examples), f"{name} answers", "prompt") as bar,
        ):
            for start in range(0, len(order), at_once):
                part = order[start : start + at_once]
                answers = write(model, [prompts[index] for index in part], [examples[index] for index in part])
                for index, answer in zip(part, answers, strict=True):
                    found[index] = answer
                bar.update(len(part))
        return found

    def _score(self, rows: Sequence[TokenizedRow]) -> None:
        subject = self.subject
        with _bar(len(rows), f"scoring {len(subject.heads)} heads", "row") as bar:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                some = rows[start : start + ROWS_AT_ONCE]
                heads = {name: (head, self.asked(name, some)) for name, head in subject.heads.items()}
                how = {"layout": subject.layout, "tokens_at_once": TOKENS_AT_ONCE, "in_bf16": subject.in_bf16}
                found = answer_logps(heads, **how)
                for index, row in enumerate(some):
                    self._logps[row.example] = {name: own[index].double().numpy() for name, own in found.items()}
                bar.update(len(some))

    def _prefix(self, head: str) -> str | None:
        return self.subject.prefix if head == POLICY else None

    def _prompt(self, head: str, example: Example) -> Prompt:
        prefix = self._prefix(head)
        return example.prompt if prefix is None else nat.labelled(example.prompt, prefix)

    def _prompt_ids(self, head: str, example: Example) -> list[int]:
        return encode_prompt(self.subject.tokenizer, self._prompt(head, example))


@contextlib.contextmanager
def as_head(head: Head, in_bf16: bool) -> Iterator[torch.nn.Module]:
    """The model of a head, computing as that head does for whoever calls it."""
    routing, device = routing_of(causal_lm(head.model)), causal_lm(head.model).get_input_embeddings().weight.device
    with (
        torch.autocast(device.type, torch.bfloat16, enabled=in_bf16),
        routing.set(head.role) if routing else contextlib.nullcontext(),
    ):
        yield head.model


class Unusable(UserError):
    """No row of a source is of use to a measure."""


def unusable(ledger: Ledger, where: str, needs: str) -> Unusable:
    """What a user is told whose rows are all of no use."""
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(ledger.dropped.items()))
    return Unusable(where, f"no row can be used ({reasons or 'there are none'})", f"give {needs}")


def _bar(total: int, title: str, unit: str) -> tqdm:
    return tqdm(total=total, desc=title, unit=unit, leave=False, disable=None if total else True)


def _encode(subject: Subject, example: Example, ledger: Ledger) -> TokenizedRow | None:
    """The row in tokens; None, and an entry in the ledger, if one of its answers cannot be scored whole."""
    aside, wanted = Ledger(), len(example.texts("positive")) + len(example.texts("negative"))
    try:
        row = encode_row(
            subject.tokenizer, example, roles={POSITIVE, NEGATIVE}, max_length=subject.max_length, ledger=aside
        )
    except PromptTooLong:
        ledger.drop("too long for data.max_length of the run", example.place)
        return None
    except TemplateRefuses as error:
        ledger.drop("the chat template refuses it", example.place, shorten(error.what, 80))
        return None
    if aside.dropped["response truncated"]:
        ledger.drop("too long for data.max_length of the run", example.place)
        return None
    if len(row.responses) < wanted:
        ledger.drop("the chat template hides where an answer begins", example.place)
        return None
    if not wanted:
        ledger.drop("no right or wrong answer", example.place)
        return None
    return row
