"""Questions of yes or no as the repair of heads asks them: as many of either answer, both orders of the candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.examples import Example, Prompt, Response
from align.evaluation.negative_bias import answer_of, balanced, behind
from align.evaluation.probe import unusable
from align.evaluation.rows import Rows

YES, NO = "Yes", "No"


@dataclass(frozen=True)
class Asked:
    """A question with the candidates behind it."""

    prompt: Prompt
    instruction: str  # the last line of the prompt: "Answer Yes or No."
    is_yes: bool  # whether that is the right answer
    place: str

    def example(self) -> Example:
        """The record: the right candidate as its positive, the other as its negative."""
        right, wrong = (YES, NO) if self.is_yes else (NO, YES)
        return Example(self.prompt, (Response(right, "positive"), Response(wrong, "negative")), "yes or no", self.place)


def halves(rows: Rows) -> tuple[Rows, Rows]:
    """(to find heads and learn on, to measure on): as many questions of either answer in each, none in both.

    What is left out is counted in the ledger of `rows`. Raises UserError without two questions of either answer.
    """
    seen, examples = set(), []
    for example in rows.examples:
        if example.key in seen:
            rows.ledger.drop("the same question again", example.place)
        else:
            seen.add(example.key)
            examples.append(example)
    found = balanced(examples, rows.ledger, rows.where)
    kinds = [[one for one in found if answer_of(one) is kind] for kind in (True, False)]
    count = len(kinds[0]) // 2
    if not count:
        raise unusable(rows.ledger, rows.where, "at least two questions of either answer: half are measured on")
    rows.ledger.used = len(found)
    parts = ([one for own in kinds for one in own[:count]], [one for own in kinds for one in own[count:]])
    learned, measured = (dataclasses.replace(rows.fresh(), examples=part) for part in parts)
    return learned, measured


def asked(examples: Sequence[Example]) -> list[Asked]:
    """Each question with the candidates in either order."""
    return [_asked(example, order) for example in examples for order in ((YES, NO), (NO, YES))]


def _asked(example: Example, order: tuple[str, str]) -> Asked:
    instruction = f"Answer {order[0]} or {order[1]}."
    return Asked(behind(example.prompt, instruction), instruction, answer_of(example) is True, example.place)
