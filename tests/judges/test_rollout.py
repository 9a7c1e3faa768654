"""The judge that continues answers with the policy."""

import pytest

from align import generation
from align.data.examples import Example, Response
from align.judges import Answer
from align.judges.rollout import RolloutJudge
from align.judges.verifiers import Verdict
from align.negatives.options import Sampling
from tests import tiny

EXAMPLE = Example((("user", "Say it."),), (Response("x", "positive"),), "test", "rows.jsonl:1")
TOKENIZER = tiny.tokenizer()


def even(example: Example, text: str) -> Verdict:
    return Verdict(None if len(text) % 5 == 0 else len(text) % 2 == 0)


def judge(model, verify=even, **given) -> RolloutJudge:
    config = Sampling(k=4, max_new_tokens=12, batch_size=given.pop("batch_size", 8))
    return RolloutJudge(model, TOKENIZER, verify, config, n=given.pop("n", 4), good=0.5, seed=0)


def test_a_step_scores_the_share_of_its_continuations_that_come_out_right():
    seen, model = [], tiny.llama()

    def noted(example, text):
        seen.append(text)
        return even(example, text)

    text = "one. two. three"
    scores = judge(model, noted).score([Answer(EXAMPLE, text, (5, 10, 15))])[0]
    begun = [one for one in seen if one != text]
    assert len(begun) == 8 and all(one.startswith("one. ") for one in begun)
    first, second = begun[:4], begun[4:]
    assert all(one.startswith("one. two. ") for one in second)
    for score, ends in zip(scores, (first, second), strict=False):
        known = [found for end in ends if (found := even(EXAMPLE, end).is_right) is not None]
        assert score == pytest.approx(sum(known) / len(known))
    assert scores[2] is None  # 15 characters: undecided


def test_the_last_step_is_judged_by_the_answer_and_nothing_is_drawn_for_it(monkeypatch):
    monkeypatch.setattr(generation, "draw", lambda *arguments: pytest.fail("drew"))
    assert judge(tiny.llama()).score([Answer(EXAMPLE, "four", (4,)), Answer(EXAMPLE, "one", (3,))]) == [[1.0], [0.0]]


def test_scores_do_not_depend_on_what_is_judged_together_and_beginnings_are_shared(monkeypatch):
    model = tiny.llama()
    answers = [Answer(EXAMPLE, f"one. {word}", (5, 5 + len(word))) for word in ("two", "three", "four")]
    answers.append(Answer(EXAMPLE, "On and on. No", (11, 13)))
    calls, draw = [], generation.draw
    monkeypatch.setattr(generation, "draw", lambda *given: calls.append(given[2]) or draw(*given))
    together = judge(model, batch_size=64).score(answers)
    assert sum(map(len, calls)) == 2  # "one. " once
    assert together == [judge(model, batch_size=4).score([answer])[0] for answer in answers]
