"""Near misses: good answers with one thing wrong, and good answers to a neighbouring prompt.

An edit is refused if by rules it says the same as a good answer or arrives at the same result
(`align.negatives.meaning`), if it is an answer of the row already, or if a verifier does not find it wrong. The record
says what was done (`made`) and, as `steps`, where: what stands before the edit is right, being the beginning of a good
answer (1); the edited part is wrong (-1); what follows may depend on it (null). So step labels and weights of spans
come for free. Of an answer to another prompt all is wrong; prompts that are held out by default give none, or their
right answers would be unlearned.

Not every change makes an answer wrong: there is nothing wrong with another number in a tale. Prompts that ask for
something invented get answers of neighbours and other options only; in long answers to open questions sentences that
share words with the prompt come first.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from random import Random
from typing import NamedTuple

from align.data.examples import Example, Response, Step
from align.data.sources import HOLDOUT, is_held_out
from align.judges import verifiers
from align.negatives.edits import Answer, Edit, lexical, negation, numbers, steps
from align.negatives.edits.equations import numbers_of, value_of
from align.negatives.meaning import NON_COMMITTAL, normal_form, result_of
from align.negatives.similar_prompts import SimilarPrompts, text_of

EDITS: dict[str, Callable[[Answer, Random], Iterator[Edit]]] = {
    "number": numbers.number_edits, "unit": lexical.unit_edits, "entity": lexical.entity_edits,
    "operator": numbers.operator_edits, "negation": negation.negation_edits, "opposite": lexical.opposite_edits,
    "quantifier": lexical.quantifier_edits, "order": steps.order_edits, "drop": steps.drop_edits,
    "option": steps.option_edits,
}  # fmt: skip
NEIGHBOUR = "neighbour"
KINDS = (*EDITS, NEIGHBOUR)

BY = "near-miss"
_ASKS = re.compile(r"\b(?:what|which|who|whom|whose|when|where|why|how)\b")
_VERDICT = re.compile(r"\s*(yes|no)\b", re.IGNORECASE)
LEAST, ALIKE = 0.15, 0.7  # similarity from which on a prompt is a neighbour, and may ask for the same
SHORT = 12  # words up to which one shared stem makes answers alike
NEAREST = 10  # neighbours looked at
LONG = 400  # characters from which on an answer is to an open question, unless it computes
_INVENTED = re.compile(
    r"\b(?:role-?play|pretend|quest|act as)\b"
    r"|\b(?:write|create|compose|generate|tell|make up|imagine|draft|continue|craft)\b.{0,80}"
    r"\b(?:story|stories|poem|song|lyrics|haiku|dialogue|conversation|scene|script|screenplay|novel|fiction|tale|letter"
    r"|speech|role|joke|essay|character|narrative|ads?|advertisement|slogan)\b",
    re.IGNORECASE | re.DOTALL,
)
_FILLERS = set(
    "the and for are was were that this with from have has had not you your they them their its can will".split()
)


class Candidate(NamedTuple):
    text: str
    steps: tuple[Step, ...]
    made: dict

    def response(self) -> Response:
        return Response(self.text, "negative", steps=self.steps, made=json.dumps(self.made, ensure_ascii=False))


class NearMisses:
    """Makes the near misses of each row of a set."""

    def __init__(
        self, examples: Sequence[Example], *, kinds: Sequence[str] = KINDS, most: int = 2, seed: int = 0,
        verify: verifiers.Verify | None = None,
    ):  # fmt: skip
        self.kinds, self.most, self.seed, self.verify = kinds, most, seed, verify
        self.neighbours = SimilarPrompts(examples) if NEIGHBOUR in kinds else None
        self.givers = {one.key for one in examples if not is_held_out(one, HOLDOUT)}
        self.good: dict[str, list[str]] = {}  # prompt -> its positives
        self.asks: dict[str, str] = {}  # prompt -> what it asks for
        for example in examples:
            known = {*self.good.get(example.key, ()), *example.texts("positive")}
            self.good[example.key], self.asks[example.key] = sorted(known), _question_word(text_of(example.prompt))
        forms = Counter(form for texts in self.good.values() for form in {normal_form(text) for text in texts})
        self.common = {form for form, count in forms.items() if count > 1}  # answers to several prompts

    def of(self, example: Example) -> list[Response]:
        """The near misses of a row: of one kind after another, in an order that is drawn, until there are enough.

        A neighbour's answer is the farthest miss: it comes last, and once.
        """
        known = {normal_form(one.said) for one in example.responses}
        known |= {normal_form(text) for text in self.good[example.key]}
        results = {result_of(text) for text in self.good[example.key]}
        order = sorted(self._draw(example).sample(self.kinds, len(self.kinds)), key=lambda kind: kind == NEIGHBOUR)
        waiting = [(kind, self._candidates(example, kind)) for kind in order]
        found: list[Response] = []
        while waiting and len(found) < self.most:
            kind, candidates = waiting.pop(0)
            if kind == NEIGHBOUR and waiting:
                waiting.append((kind, candidates))
                continue
            accepted = next((one for one in candidates if self._is_wrong(example, one.text, known, results)), None)
            if accepted is not None:
                known.add(normal_form(accepted.text))
                found.append(accepted.response())
                if kind != NEIGHBOUR:
                    waiting.append((kind, candidates))  # again when the other kinds had their turn
        return found

    def _draw(self, example: Example, *more: str) -> Random:
        return Random("/".join([str(self.seed), example.key, *more]))

    def _is_wrong(self, example: Example, text: str, known: set[str], results: set[Fraction | None]) -> bool:
        """Whether a text is another answer than all that are known, and wrong as far as can be told."""
        numbers = numbers_of(text)
        if numbers and value_of(numbers[-1][0]) in results:
            return False
        form = normal_form(text)
        if not form or form in known:
            return False
        return self.verify is None or self.verify(example, text).is_right is False

    def _candidates(self, example: Example, kind: str) -> Iterator[Candidate]:
        """Near misses of one kind, those that tell most first."""
        if kind == NEIGHBOUR:
            yield from self._of_neighbours(example)
            return
        prompt = text_of(example.prompt)
        if _INVENTED.search(prompt) and kind != "option":
            return
        positives = _editable(example)
        for positive in self._draw(example, kind).sample(positives, len(positives)):
            others = tuple(text for text in self.good[example.key] if text != positive.text)
            answer, draw = Answer(prompt, positive.text, others), self._draw(example, kind, positive.text)
            edits = [edit for edit in EDITS[kind](answer, draw) if answer.is_free(edit.start, edit.end)]
            draw.shuffle(edits)
            if len(answer.text) > LONG and kind not in ("number", "operator"):
                edits.sort(key=lambda edit: -min(_shared(answer, edit), 3))
            for edit in edits:
                yield _edited(answer.text, edit)

    def _of_neighbours(self, example: Example) -> Iterator[Candidate]:
        """Good answers to the nearest prompts, but for those that may answer this one."""
        own = [one.text for one in _editable(example)]
        for similarity, key in self.neighbours.nearest(example.key, NEAREST):
            is_like = LEAST <= similarity < ALIKE and self.asks[key] == self.asks[example.key]
            if own and is_like and key in self.givers:
                for text in self._draw(example, key).sample(self.good[key], len(self.good[key])):
                    if _shape(text) in map(_shape, own) and not self._may_answer(text, example):
                        made = {"by": BY, "kind": NEIGHBOUR, "span": [0, len(text)], "of": key}
                        made |= {"similarity": round(similarity, 3)}
                        yield Candidate(text, (Step(len(text), -1),), made)

    def _may_answer(self, text: str, example: Example) -> bool:
        """Whether an answer to another prompt may do for this one, too."""
        if normal_form(text) in self.common or NON_COMMITTAL.fullmatch(text):
            return True
        verdict = _verdict(text)
        return any(_alike(text, good) or (verdict and verdict == _verdict(good)) for good in self.good[example.key])


def _editable(example: Example) -> list[Response]:
    """The positives that say something, in words alone."""
    given = {one.text: one for one in example.responses if one.role == "positive" and one.calls is None}
    return [given[text] for text in sorted(given) if text.strip() and not NON_COMMITTAL.fullmatch(text)]


def _edited(text: str, edit: Edit) -> Candidate:
    changed, (start, end) = edit.apply(text)
    ends = {start: 1, end: -1, len(changed): None}
    if end == len(changed):
        ends[end] = -1
    found = tuple(Step(place, label) for place, label in sorted(ends.items()) if place > 0)
    made = {"by": BY, "kind": edit.kind, "span": [start, end], "was": text[edit.start : edit.end]}
    return Candidate(changed, found, made)


def _question_word(prompt: str) -> str:
    """The word that the last sentence of a prompt asks with; empty if there is none."""
    found = _ASKS.findall(prompt[prompt.rstrip(" ?.!\n").rfind(".") + 1 :].lower())
    return found[0] if found else ""


def _shape(text: str) -> tuple[int, bool, bool, bool]:
    """What answers to one question have in common: few words or many, capital, full stop, `Yes` or `No` in front."""
    length = sum(len(text.split()) > most for most in (2, 6, 25))
    return length, text[:1].isupper(), text.rstrip()[-1:] in ".!?", _verdict(text) is not None


def _verdict(text: str) -> str | None:
    """`yes` or `no` where an answer begins so."""
    found = _VERDICT.match(text)
    return found and found[1].lower()


def _alike(one: str, other: str) -> bool:
    """Whether an answer may say what another says: half of its words, the same number, of few words a single stem."""
    first, second = _words(one), _words(other)
    if result_of(one) is not None and result_of(one) == result_of(other):
        return True
    if min(len(first), len(second)) > SHORT:
        return len(first & second) > 0.5 * len(first | second)
    return bool(
        {word[:4] for word in first - _FILLERS if len(word) > 2}
        & {word[:4] for word in second - _FILLERS if len(word) > 2}
    )


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _shared(answer: Answer, edit: Edit) -> int:
    """How many words of four letters and more the edited sentence shares with the prompt."""
    begin, end = answer.sentence_at(edit.start)
    return sum(len(word) > 3 for word in _words(answer.text[begin:end]) & _words(answer.prompt))
