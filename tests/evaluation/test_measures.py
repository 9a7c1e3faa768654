"""Each measure on a tiny model and its changed copy, against loops over single answers; hand-made scores where told."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

from align.data.examples import Example, Response
from align.data.ledger import Ledger
from align.data.tokenize import encode_prompt
from align.errors import UserError
from align.evaluation import (
    drift,
    kl,
    measures,
    negative_bias,
    over_refusal,
    pass_at_k,
    preference_accuracy,
    repetition,
)
from align.evaluation.probe import PER_TOKEN, SUM, Options, Probe
from align.evaluation.rows import BENIGN, Rows
from align.evaluation.settings import Settings
from align.evaluation.subject import Subject
from align.judges.options import Verifier
from align.scoring.answers import Head, layout_for
from tests import tiny


@pytest.fixture(scope="module")
def models() -> dict[str, nn.Module]:
    base, policy = tiny.llama(), tiny.llama()
    with torch.no_grad():
        for weight in policy.parameters():
            weight += 0.03 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return {"base": base, "policy": policy}


@pytest.fixture(scope="module")
def subject(models) -> Subject:
    heads = {"base": Head(models["base"], 0), "policy": Head(models["policy"], 1)}
    layouts = {layout_for(model, 400) for model in models.values()}
    scores = {name: {name: 1.0} for name in heads}
    return Subject("tiny", tiny.tokenizer(), heads, scores, max_length=400, layout=layouts.pop(), in_bf16=False)


def example(prompt: str, positives=(), negatives=(), source="made", place="rows:1") -> Example:
    responses = [Response(text, "positive") for text in positives] + [Response(text, "negative") for text in negatives]
    return Example(prompt, tuple(responses), source, place)


def rows_of(*examples: Example, path="made.jsonl") -> Rows:
    return Rows(path, path, "--data", list(examples), Ledger(read=len(examples)))


@pytest.fixture(scope="module")
def mixed() -> Rows:
    return rows_of(
        example("Where?", ["Here, or near."], ["No idea", "There"], "one"),
        example("When is it, then?", ["Now."], ["Never again"], "two"),
        example("Who?", ["I am."], [], "two"),
        example("Why so?", [], ["So so", "Because."], "one"),
    )


@torch.no_grad()
def token_logits(model, prompt: str, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(log-probs (T, V), ids (T,)) of an answer and its end of turn, forwarded alone."""
    tokenizer = tiny.tokenizer()
    prompt_ids = encode_prompt(tokenizer, prompt)
    ids = torch.tensor([*tokenizer(text)["input_ids"], 257])
    logits = model(input_ids=torch.tensor([[*prompt_ids, *ids.tolist()]])).logits[0, len(prompt_ids) - 1 : -1]
    return logits.float().log_softmax(-1), ids


def logp(model, prompt: str, text: str) -> torch.Tensor:
    logps, ids = token_logits(model, prompt, text)
    return logps.gather(-1, ids[:, None])[:, 0]


def test_preference_accuracy(subject, models, mixed):
    found = preference_accuracy.evaluate(Probe(subject), mixed.fresh())
    assert found["pairs"] == 3
    for metric, of in (("by sum", torch.sum), ("by mean log-prob", torch.mean)):
        for name, model in models.items():
            shares = []
            for one in mixed.examples[:2]:
                (good,) = (of(logp(model, one.prompt, text)) for text in one.texts("positive"))
                shares.append(np.mean([bool(good > of(logp(model, one.prompt, bad))) for bad in one.texts("negative")]))
            assert found["metrics"][metric][name]["value"] == pytest.approx(np.mean(shares)), (metric, name)
    reward = found["metrics"]["by implicit reward"]
    assert list(reward) == ["policy"]
    shares = []
    for one in mixed.examples[:2]:
        good, *bads = (
            (logp(models["policy"], one.prompt, text) - logp(models["base"], one.prompt, text)).sum()
            for text in [*one.texts("positive"), *one.texts("negative")]
        )
        shares.append(np.mean([bool(good > bad) for bad in bads]))
    assert reward["policy"]["value"] == pytest.approx(np.mean(shares))


def test_pairs_by_hand():
    options = Options(
        {"base": [np.array([-3.0, -4.0, -2.0]), np.array([-1.0, -1.0])]},
        [np.array([1, 4, 2]), np.array([1, 1])],
        [np.array([True, False, False]), np.array([True, False])],
        ["a", "b"],
    )
    assert preference_accuracy.in_order(options, {"base": 1.0}, SUM).tolist() == [0.5, 0], "a tie is an error"
    assert preference_accuracy.in_order(options, {"base": 1.0}, PER_TOKEN).tolist() == [0, 0]
    assert preference_accuracy.rewarded({"policy": 1.0}) == {"policy": 1.0, "base": -1.0}
    assert preference_accuracy.rewarded({"positive": 1.0, "negative": -1.0})["base"] == 0


def test_drift_by_role_and_source(subject, models, mixed):
    metrics = drift.evaluate(Probe(subject), mixed.fresh())["metrics"]
    assert next(iter(metrics)) == "positives"
    assert set(metrics) == {f"{role}{more}" for role in ("positives", "negatives") for more in ("", ", two", ", one")}
    for title, figures in metrics.items():
        role, _, source = title.partition(", ")
        for name, model in models.items():
            tokens = [
                logp(model, one.prompt, text)
                for one in mixed.examples
                if source in ("", one.source)
                for text in one.texts(role.removesuffix("s"))
            ]
            assert figures[name]["value"] == pytest.approx(torch.cat(tokens).mean().item(), abs=1e-4), (title, name)
    change = metrics["negatives"]["policy"]["value"] - metrics["negatives"]["base"]["value"]
    assert metrics["negatives"]["policy"]["change"] == pytest.approx(change) and abs(change) > 1e-3


def test_kl_to_the_base(subject, models, mixed):
    metrics = kl.evaluate(Probe(subject), mixed.fresh())["metrics"]
    for role in ("positive", "negative"):
        found = []
        for one in mixed.examples:
            for text in one.texts(role):
                own, base = (token_logits(models[name], one.prompt, text)[0] for name in ("policy", "base"))
                found.append((own.exp() * (own - base)).sum(-1))
        assert list(metrics[f"{role}s"]) == ["policy"]
        expected = torch.cat(found).mean().item()
        assert metrics[f"{role}s"]["policy"]["value"] == pytest.approx(expected, abs=1e-4) and expected > 0.01


def test_repetition_by_hand():
    assert repetition.repeated([1, 2, 3, 4, 1, 2, 3, 4], 4) == pytest.approx(1 / 5)  # 1234 is there twice of five
    assert repetition.repeated([1, 2, 3], 4) == 0
    assert repetition.distinct([7, 7, 7, 8], 1) == 0.5 and repetition.distinct([7, 7, 7, 8], 2) == 0.5
    assert repetition.distinct([], 1) == 0


def test_greedy_answers_are_written_once_for_both_measures(subject, models, mixed, monkeypatch):
    probe = Probe(subject, Settings(max_new_tokens=6))
    found = repetition.evaluate(probe, mixed.fresh())
    prompts = [encode_prompt(tiny.tokenizer(), one.prompt) for one in mixed.examples]
    for name, model in models.items():
        lengths = []
        for ids in prompts:
            said: list[int] = []
            while len(said) < 6 and said[-1:] != [257]:
                said.append(model(input_ids=torch.tensor([[*ids, *said]])).logits[0, -1].argmax().item())
            lengths.append(len(said) - (said[-1] == 257))
        assert found["metrics"]["length in tokens"][name]["value"] == pytest.approx(np.mean(lengths))
    monkeypatch.setattr("align.evaluation.probe.generate", None)  # what was written is not written again
    spelt = tiny.tokenizer()("I'm sorry, no.")["input_ids"]
    probe._answers = {key: [*spelt[0 if key[0] == "policy" else 11 :], 257] for key in probe._answers}
    refusal = over_refusal.evaluate(probe, mixed.fresh())
    figures = refusal["metrics"]["answered with a refusal"]
    assert figures["base"]["value"] == 0 and figures["policy"]["value"] == 1 and figures["policy"]["won"] == 4
    assert refusal["refusals"][0] == {"model": "policy", "prompt": "Where?", "answer": "I'm sorry, no."}


def test_pass_at_k_counts_what_the_verifier_calls_right(subject, models):
    rows = rows_of(example("What is it?", ["e"]), example("And this?", ["a"]), example("Nothing known?", [], ["x"]))
    probe = Probe(subject, Settings(Verifier(name="tests.evaluation.test_measures.has_letter"), 3, 8))
    found = pass_at_k.evaluate(probe, rows)
    assert list(found["metrics"]) == ["pass@1", "pass@2", "pass@3"]
    assert rows.ledger.dropped == {"no right answer to compare with": 1} and rows.ledger.used == 2
    values = [found["metrics"][f"pass@{k}"]["policy"]["value"] for k in (1, 2, 3)]
    assert values == sorted(values)
    with pytest.raises(UserError, match="add --verifier"):
        pass_at_k.evaluate(Probe(subject), rows)


def has_letter(prompt, answer: str, right: list[str]) -> bool:
    return right[0] in answer


def test_bias_by_hand():
    """Four questions whose answer is yes, and four whose answer is no."""

    def chosen(*said: int) -> list[np.ndarray]:
        return [np.where(np.arange(2) == one, -1.0, -2.0) for one in said]

    is_right = [np.array([True, False])] * 4 + [np.array([False, True])] * 4
    options = Options(
        {"base": chosen(0, 0, 1, 1, 0, 1, 1, 1), "policy": chosen(1, 1, 1, 0, 1, 1, 1, 1)},
        [np.array([1, 1])] * 8, is_right, ["x"] * 8,
    )  # fmt: skip
    probe = Probe(Subject("s", None, {}, {name: {name: 1.0} for name in ("base", "policy")}, 9, "packed", False))
    found = {name: own for name, own in negative_bias._of_setting(probe, options).items()}
    assert found["precision of yes"]["base"]["value"] == pytest.approx(2 / 3)
    assert found["recall of yes"]["base"]["value"] == 0.5
    assert found["bias"]["base"]["value"] == pytest.approx(2 / 3 - 1 / 2)
    assert found["bias"]["policy"]["value"] == pytest.approx(1 - 1 / 4)  # it leans to no
    assert found["accuracy"]["policy"]["value"] == 5 / 8 and found["said yes"]["policy"]["value"] == 1 / 8
    odds = [found["log-odds of no"][name]["value"] for name in ("base", "policy")]
    assert odds == pytest.approx([(5 - 3) / 8, (7 - 1) / 8])  # 1 nat towards what is chosen
    assert "unsure" not in found
    tied = Options({"base": [np.zeros(2)]}, [np.ones(2)], is_right[:1], ["x"])
    assert negative_bias.said(tied, {"base": 1.0}).tolist() == [-1]


def test_yes_and_no_are_balanced_and_asked_in_eight_ways(subject, models):
    questions = [example(f"Is {n} odd?", *((["Yes"], ["No"]) if n % 3 else (["No."], ["yes"]))) for n in range(9)]
    rows = rows_of(*questions, example("Where?", ["Here"], ["There"]))
    probe = Probe(subject)
    found = negative_bias.evaluate(probe, rows)
    assert found["questions"] == 6 and rows.ledger.used == 6
    assert rows.ledger.dropped == {
        "no question of yes or no": 1, "left out: one answer has more questions than the other": 3
    }  # fmt: skip
    settings = [title.removeprefix("said yes: ") for title in found["metrics"] if title.startswith("said yes: ")]
    assert len(settings) == 8 and {"Yes or No", "No or Yes", "False, True or I don't know"} <= set(settings)
    kept = negative_bias.balanced(questions, Ledger(), "--data")
    for setting, words in (("No or Yes", ["Yes", "No"]), ("Yes, No or I don't know", ["Yes", "No", "I don't know"])):
        for name, model in models.items():
            said = []
            for one in kept:
                prompt = f"{one.prompt}\nAnswer {setting}."
                said.append(int(torch.stack([logp(model, prompt, word).sum() for word in words]).argmax()))
            value = found["metrics"][f"said yes: {setting}"][name]["value"]
            assert value == pytest.approx(np.mean([one == 0 for one in said])), (setting, name)
    with pytest.raises(UserError, match="some of each"):
        negative_bias.evaluate(probe, rows_of(questions[1]))


def test_measures_are_chosen_by_the_shape_of_the_rows(mixed):
    pairs, yes = mixed, rows_of(example("Is it?", ["Yes"], ["No"]))
    assert measures.fitting(pairs, Settings()) == ["preference_accuracy", "multiple_choice", "flips", "drift"]
    assert measures.fitting(yes, Settings()) == ["multiple_choice", "flips", "negative_bias"]
    good = rows_of(example("Who?", ["I."]))
    assert measures.fitting(good, Settings()) == ["drift", "kl"]
    assert measures.fitting(good, Settings(Verifier())) == ["pass_at_k"]
    benign = rows_of(example("Who?", ["I."]), path=BENIGN)
    assert measures.fitting(benign, Settings()) == ["drift", "kl", "over_refusal", "repetition"]
    with pytest.raises(UserError, match="did you mean 'flips'"):
        measures.check(["flip"])


def test_nothing_is_scored_twice(subject, mixed, monkeypatch):
    probe = Probe(subject)
    first = measures.evaluate("multiple_choice", probe, mixed)
    monkeypatch.setattr("align.evaluation.probe.answer_logps", None)
    for name in ("flips", "preference_accuracy"):
        found = measures.evaluate(name, probe, mixed)
        assert found["rows"]["rows_used"] == first["rows"]["rows_used"] == 2
        json.dumps(found, allow_nan=False)
