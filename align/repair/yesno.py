"""Questions of yes or no as the repair of heads asks them: balanced, in both orders of the candidates.

Rows whose right and wrong answers are the two words, with or without a full stop, in any case; others are counted and
left out. Of the more frequent answer questions are left out, by hash, until there are as many of either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.examples import Example, Prompt, Response
from align.data.ledger import Ledger
from align.errors import UserError
from align.evaluation import multiple_choice

Words = tuple[str, str]  # (yes, no)
WORDS, PARAPHRASE = ("Yes", "No"), ("True", "False")  # what heads are found and trained on; what they are not


@dataclass(frozen=True)
class Asked:
    """A question with its candidates behind it."""

    prompt: Prompt
    instruction: str  # the last line of the prompt: "Answer Yes or No."
    yes: str
    no: str
    is_yes: bool  # whether that is the right answer
    place: str

    def example(self) -> Example:
        """The record: the right candidate as its positive, the other as its negative."""
        right, wrong = (self.yes, self.no) if self.is_yes else (self.no, self.yes)
        return Example(self.prompt, (Response(right, "positive"), Response(wrong, "negative")), "yes or no", self.place)


def read(path: str, ledger: Ledger) -> list[tuple[Example, bool]]:
    """As many questions whose answer is yes (True) as such whose answer is no. Raises UserError if there are none."""
    kinds: dict[bool, list[Example]] = {True: [], False: []}
    seen: set[str] = set()
    for example in multiple_choice.questions(path, ledger):
        is_yes = _answer(example)
        if is_yes is None:
            ledger.drop("its answers are not yes and no", example.place)
        elif example.key in seen:
            ledger.drop("the same question again", example.place)
        else:
            seen.add(example.key)
            kinds[is_yes].append(example)
    count = min(map(len, kinds.values()))
    if count < 2:
        what = f"{len(kinds[True])} questions are answered by yes and {len(kinds[False])} by no"
        raise UserError("--data", what, "give rows whose right and wrong answers are Yes and No, some of either")
    found = []
    for is_yes, examples in kinds.items():
        ordered = sorted(examples, key=lambda one: hashlib.sha256(one.key.encode()).digest())
        for example in ordered[count:]:
            ledger.drop("left out: the other answer has fewer questions", example.place)
        found += [(example, is_yes) for example in ordered[:count]]
    ledger.used = len(found)
    return found


def _answer(example: Example) -> bool | None:
    """Whether the right answer is yes; None if the row is no question of yes or no."""
    right, wrong = (
        {text.strip().rstrip(".").casefold() for text in example.texts(role)} for role in ("positive", "negative")
    )
    return {("yes", "no"): True, ("no", "yes"): False}.get((*right, *wrong))


def halves(found: Sequence[tuple[Example, bool]]) -> tuple[list, list]:
    """(to find heads and learn on, to measure on): every other question of either answer."""
    parts = [[one for one in found if one[1] is kind] for kind in (True, False)]
    return tuple([one for part in parts for one in part[start::2]] for start in (0, 1))


def asked(found: Sequence[tuple[Example, bool]], words: Words) -> list[Asked]:
    """Each question with the candidates in either order."""
    return [_asked(example, is_yes, words, order) for example, is_yes in found for order in (words, words[::-1])]


def _asked(example: Example, is_yes: bool, words: Words, order: Words) -> Asked:
    instruction = f"Answer {order[0]} or {order[1]}."
    prompt = example.prompt
    if isinstance(prompt, str):
        prompt = f"{prompt}\n{instruction}"
    else:
        role, content, *more = prompt[-1]
        prompt = (*prompt[:-1], (role, f"{content}\n{instruction}", *more))
    return Asked(prompt, instruction, *words, is_yes, example.place)
