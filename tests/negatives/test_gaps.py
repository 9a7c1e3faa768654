"""Gaps: margins against a loop over single tokens, and what verifiers and judges say."""

from __future__ import annotations

import pytest
import torch

from align.data.examples import Example, Response
from align.data.tokenize import encode_prompt, encode_response
from align.generation import Policy
from align.judges import verifiers
from align.judges.options import Verifier
from align.negatives.gaps import Case, Judged, Margin, Verified
from tests import tiny

TOKENIZER = tiny.tokenizer()
ROW = Example(
    "A cat has 4 legs. How many?", (Response("It has 4.", "positive"), Response("4", "positive")), "tiny", "rows:1"
)
POOR = "Say something about many."
CASE = Case(ROW, POOR, ["It has 5.", "A cat may have 4 legs or so"])


def mean_logp(model, prompt: str, text: str) -> float:
    """Nats a token, by one forward pass."""
    ids = encode_prompt(TOKENIZER, prompt)
    answer = encode_response(TOKENIZER, prompt, ids, text)
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids + answer])).logits[0].double().log_softmax(-1)
    return sum(logps[len(ids) - 1 + n, token].item() for n, token in enumerate(answer)) / len(answer)


def test_the_margin_is_what_the_full_prompt_adds():
    model = tiny.llama(initializer_range=0.25)
    gains = [mean_logp(model, ROW.prompt, text) - mean_logp(model, POOR, text)
             for text in (*ROW.texts("positive"), *CASE.answers)]  # fmt: skip
    wanted = [(gains[0] + gains[1]) / 2 - gain for gain in gains[2:]]
    empty, nothing_poorer = CASE._replace(answers=[]), CASE._replace(poor=None)
    found = Margin(Policy("tiny", model, TOKENIZER, "0"), 256, in_bf16=False).measure([empty, CASE, nothing_poorer])
    assert found[0] == [] and found[2] == [None, None]
    assert found[1] == pytest.approx(wanted, abs=1e-4) and abs(wanted[0]) > 0.01


def test_an_answer_that_cannot_be_scored_whole_has_no_margin():
    margin = Margin(Policy("tiny", tiny.llama(), TOKENIZER, "0"), 96, in_bf16=False)
    assert margin.measure([CASE]) != [[None, None]]
    assert margin.measure([CASE._replace(answers=["no", "x" * 60])]) == [[None, None]]


def test_a_verifier_tells_wrong_from_right_and_may_not_know():
    gap = Verified(verifiers.load(Verifier(name="numeric")), {})
    assert gap.measure([CASE._replace(answers=["5", "It is 4", "some"])]) == [[1.0, 0.0, None]]


class _Length:
    """A judge to whom long answers are good; a comma it cannot read."""

    name, good, made_by = "length", 0.5, {"by": "length"}

    def __init__(self, per_letter: float):
        self.per_letter = per_letter

    def score(self, answers):
        assert all(answer.ends == (len(answer.text),) for answer in answers), "whole answers"
        return [[None if "," in answer.text else len(answer.text) * self.per_letter] for answer in answers]


def test_judges_are_averaged_over_positives_and_judges():
    case = CASE._replace(answers=["no", "no, no"])  # positives have 9 and 1 letters
    found = Judged([_Length(0.01), _Length(0.03)]).measure([case, CASE._replace(answers=[])])
    assert found == [[pytest.approx(0.02 * (5 - 2)), None], []]
