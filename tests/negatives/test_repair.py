"""Repair: what becomes of rows, the cascade and its cost, the audit file, and the command on planted flips."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from align.cli import run as align
from align.data.examples import Example, Response, Step, parse_row
from align.data.sources import is_held_out
from align.errors import UserError
from align.generation import Policy
from align.negatives import audit, cascade
from align.negatives.features import Features
from align.negatives.options import Repair
from align.negatives.pairs import pairs_of
from align.negatives.repair import Finding, mended, proposal
from tests import tiny
from tests.rollout_worlds import lines

PAIR = Example("Q?", (Response("good", "positive"), Response("bad", "negative", weight=0.5)), "tiny", "rows:1")
MANY = Example(
    "Q?", (Response("a", "positive"), Response("b", "negative"), Response("c", "negative")), "tiny", "rows:2"
)


def finding(example: Example, index: int, doubt: float = 1.0) -> Finding:
    (pair,) = [pair for pair in pairs_of(example) if pair.index == index]
    return Finding(pair, {"margin": -1.0}, doubt, is_suspect=True, is_wrong=True)


def done(example: Example, index: int, action: str) -> list[tuple] | None:
    """(text, role, weight) of the row after an action."""
    row = mended(example, {index: (action, finding(example, index, 0.6))})
    return row and [(one["text"], one["role"], one.get("weight", 1.0)) for one in row["responses"]]


def test_what_becomes_of_a_pair():
    assert done(PAIR, 1, "drop") is None, "neither label can be trusted"
    assert done(PAIR, 1, "flip") == [("good", "negative", 1.0), ("bad", "positive", 0.5)]
    assert done(PAIR, 1, "relabel") == [("good", "positive", 1.0), ("bad", "positive", 0.5)]
    assert done(PAIR, 1, "reweight") == [("good", "positive", 0.4), ("bad", "negative", 0.2)]


def test_what_becomes_of_one_negative_among_several():
    a, c = ("a", "positive", 1.0), ("c", "negative", 1.0)
    assert done(MANY, 1, "drop") == [a, c]
    assert done(MANY, 1, "flip") == done(MANY, 1, "relabel") == [a, ("b", "positive", 1.0), c]
    assert done(MANY, 1, "reweight") == [a, ("b", "negative", 0.4), c]


def test_a_response_says_what_was_done_and_how_it_was_made_before():
    good, *bad = MANY.responses
    made = [dataclasses.replace(one, made=json.dumps({"by": f"{one.text}-maker"})) for one in bad]
    given = dataclasses.replace(MANY, responses=(good, *made))
    row = mended(given, {1: ("relabel", finding(given, 1))})
    first, second, third = (one.get("made") for one in row["responses"])
    assert first is None and third == {"by": "c-maker"}
    assert second == {
        "by": "repair", "action": "relabel", "was": {"role": "negative"}, "evidence": {"margin": -1.0},
        "before": {"by": "b-maker"},
    }  # fmt: skip


@pytest.mark.parametrize("action", ["flip", "relabel"])
def test_rewards_and_steps_go_with_the_role(action):
    """The good answer's steps spoke of a good one; a relabelled negative is worth what the worst positive is."""
    good = Response("good", "positive", reward=1.0, steps=(Step(4, 1),))
    bad = Response("bad", "negative", reward=-1.0, steps=(Step(3, -1),))
    pair = Example("Q?", (dataclasses.replace(good, reward=0.9), bad), "tiny", "rows:1")
    many = Example("Q?", (good, dataclasses.replace(good, text="fair", reward=0.9), bad), "tiny", "rows:1")
    row = mended(many, {2: (action, finding(many, 2))})
    assert [one["reward"] for one in row["responses"]] == [1.0, 0.9, 0.9]
    assert ["steps" in one for one in row["responses"]] == [True, True, False]
    was = row["responses"][2]["made"]["was"]
    assert was == {"role": "negative", "reward": -1.0, "steps": [{"end": 3, "label": -1}]}
    row = mended(pair, {1: (action, finding(pair, 1))})
    first, second = row["responses"]
    assert second["reward"] == 0.9 and second["role"] == "positive" and "steps" not in second
    assert (first["reward"], "steps" in first) == ((-1.0, False) if action == "flip" else (0.9, True))


def test_proposals():
    one = finding(PAIR, 1)
    assert proposal(Repair(action="flip"), one) == "flip"
    one.is_wrong = None
    assert proposal(Repair(action="flip"), one) == "open", "the cascade could not tell"
    one.is_wrong = False
    assert proposal(Repair(action="flip"), one) == proposal(Repair(action="reweight"), one) == "keep"
    mild = Finding(one.pair, doubt=0.2)
    assert proposal(Repair(action="reweight"), mild) == "reweight" and proposal(Repair(), mild) == "keep"


class _Judge:
    """Scores by a table of texts."""

    good = 0.5

    def __init__(self, name: str, scores: dict[str, float | None]):
        self.name, self.scores, self.asked, self.made_by = name, scores, [], {"judge": name}

    def score(self, answers):
        self.asked += [answer.text for answer in answers]
        return [[self.scores[answer.text]] for answer in answers]


def test_the_cascade_asks_the_next_judge_where_one_is_not_sure(tmp_path):
    rows = [
        Example(f"Q{n}?", (Response("good", "positive"), Response(f"bad{n}", "negative")), "t", "r") for n in (1, 2, 3)
    ]
    pairs = [pair for row in rows for pair in pairs_of(row)]
    cheap = _Judge("cheap", {"good": 0.5, "bad1": 0.9, "bad2": 0.45, "bad3": None})
    strong = _Judge("strong", {"good": 0.5, "bad2": 0.1, "bad3": 0.45})
    said, costs = cascade.ask([cheap, strong], pairs, 0.2, tmp_path)
    verdicts = [cascade.verdict(said[pair.id], 0.2) for pair in pairs]
    assert verdicts == [True, False, None] and "bad1" not in strong.asked
    assert (costs["cheap"]["pairs"], costs["cheap"]["decided"], costs["cheap"]["answers_now"]) == (3, 1, 6)
    assert (costs["strong"]["pairs"], costs["strong"]["decided"], costs["strong"]["answers_now"]) == (2, 1, 4)
    again = _Judge("cheap", {}), _Judge("strong", {})
    assert cascade.ask(again, pairs, 0.2, tmp_path)[0] == said and not again[0].asked and not again[1].asked


def test_the_audit_file_keeps_decisions_and_is_read_strictly(tmp_path):
    file = audit.path_of(tmp_path / "rows.jsonl")
    assert file.name == "rows.audit.jsonl" and audit.read(file) == {}
    fresh = [{"id": "a", "decision": None, "proposed": "drop"}, {"id": "b", "decision": None, "proposed": "drop"}]
    audit.write(file, fresh, {})
    text = file.read_text().replace('"a", "decision": null', '"a", "decision": "keep"')
    file.write_text(text)
    decided = audit.read(file)
    assert list(decided) == ["a"]
    audit.write(file, fresh[1:], decided)
    assert {line["id"]: line["decision"] for line in lines(file)} == {"b": None, "a": "keep"}
    for wrong, message in (
        ("{", "rows.audit.jsonl:1: is no line"),
        ('{"id": "a", "decision": "dorp"}', "'?dorp'? is unk"),
    ):
        file.write_text(wrong)
        with pytest.raises(UserError, match=message):
            audit.read(file)
    file.write_bytes(b'{"id": "\xe4"}')
    with pytest.raises(UserError, match=r"rows.audit.jsonl: is not UTF-8"):
        audit.read(file)


def test_features_are_means_over_the_answer_and_are_computed_once(tmp_path, monkeypatch):
    import torch

    model = tiny.llama()
    policy = Policy("tiny", model, tiny.tokenizer(), "0")
    options = {"max_length": 256, "tokens_at_once": 512, "in_bf16": False}
    rows = [
        tiny.row("Why so?", positives=["Because."], negatives=["It is not so", "No"]),
        tiny.row("Q", negatives=["a"]),
    ]
    found = Features(policy, tmp_path, **options).of(rows)
    for row, vectors in zip(rows, found, strict=True):
        for one, vector in zip(row.responses, vectors, strict=True):
            ids = torch.tensor([[*row.prompt_ids, *one.ids]])
            with torch.no_grad():
                output = model(input_ids=ids, output_hidden_states=True)
            at = slice(len(row.prompt_ids) - 1, -1)
            logps = output.logits[0, at].log_softmax(-1).gather(-1, torch.tensor(one.ids)[:, None])
            wanted = [*output.hidden_states[-1][0, at].mean(0).tolist(), logps.mean().item(), np.log(len(one.ids))]
            assert vector == pytest.approx(wanted, abs=1e-4)
    (file,) = tmp_path.glob("*.safetensors")
    monkeypatch.setattr(Features, "_compute", None)
    again = Features(policy, tmp_path, **options).of(rows[::-1])
    assert all((mine == theirs).all() for mine, theirs in zip(again[::-1], found, strict=True))
    file.write_bytes(file.read_bytes()[:-9])
    assert Features(policy, tmp_path, **options).known == {}, "a damaged file is computed again"


RECIPE = """
name: tiny
model:     {{path: {folder}/model}}
data:      {{sources: [{folder}/rows.jsonl], max_length: 128}}
objective: {{name: simpo}}
repair:    {{copies: 3, folds: 3}}
train:     {{precision: fp32}}
eval:      {{holdout: 0.0}}
output:    {folder}/state
"""
PLANTED = {3, 11, 17, 26, 33, 38}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Good answers are in capitals, bad ones in small letters; PLANTED rows are labelled the wrong way round."""
    folder = tmp_path_factory.mktemp("repair")
    tiny.save(folder / "model")
    draw, rows = np.random.default_rng(0), []
    for number in range(40):
        letters = ["".join(draw.choice(list("abcdefgh"), 12)) for _ in range(2)]
        good, bad = letters[0].upper(), letters[1]
        pair = (bad, good) if number in PLANTED else (good, bad)
        rows.append({"prompt": f"Q{number}?", "chosen": pair[0], "rejected": pair[1]})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


def repaired(world: Path, out: Path, *overrides: str) -> list[dict]:
    align(["negatives", "repair", str(world / "recipe.yaml"), "--out", str(out), *overrides])
    return lines(out)


def test_what_is_held_out_is_neither_learned_from_nor_mended(world, tmp_path):
    """Every row is given to the judge that finds all labels wrong, but for those that are held out."""
    judge = "judges={function: {name: tests.negatives.test_repair.is_bad}}"
    given = ["repair={suspects: all, cascade: [function], action: flip}", judge, "eval.holdout=0.3"]
    (tmp_path / "rows.jsonl").write_text((world / "rows.jsonl").read_text() + "no json\n")
    given += [f"data.sources=[{tmp_path / 'rows.jsonl'}]", "data.on_bad_rows=skip", f"output={tmp_path / 'state'}"]
    rows, facts = repaired(world, tmp_path / "out.jsonl", *given), json.loads((tmp_path / "out.jsonl.json").read_text())
    for row in rows:
        example = parse_row(row, source="", place="")
        assert ("made" in row["responses"][0]) != is_held_out(example, 0.3)
    assert 4 < facts["rows_held_out"] < 20 and facts["pairs"] == 40 - facts["rows_held_out"]
    assert facts["dropped"]["broken"]["count"] == 1


def is_bad(example, text, ends):
    return [float(text == example.texts("negative")[0])]


def is_small(example, text, ends):
    """A judge to whom small letters are right."""
    return [float(text.islower())]


def test_planted_flips_are_mended_and_people_have_the_last_word(world, tmp_path, capsys):
    out = tmp_path / "clean.jsonl"
    rows = repaired(world, out, "repair.action=flip")
    right = [row["responses"][0]["role"] == "positive" for row in rows if row["responses"][0]["text"].isupper()]
    right += [row["responses"][0]["role"] == "negative" for row in rows if row["responses"][0]["text"].islower()]
    facts = json.loads((tmp_path / "clean.jsonl.json").read_text())
    assert facts["pairs"] == 40 and facts["flip"] == facts["suspects"] and sum(right) >= 38
    found = lines(audit.path_of(out))
    assert len(found) == facts["suspects"] and {line["proposed"] for line in found} == {"flip"}
    assert sum(int(line["place"].rpartition(":")[2]) - 1 in PLANTED for line in found) >= 5
    assert "pairs to look at" in capsys.readouterr().out
    first = found[0]
    text = audit.path_of(out).read_text().splitlines()
    text[0] = json.dumps(first | {"decision": "keep"})
    text[1] = json.dumps(found[1] | {"decision": "drop"})
    audit.path_of(out).write_text("\n".join(text) + "\n")
    again = repaired(world, out, "repair.action=flip")
    assert len(again) == 39
    kept = next(row for row in again if row["prompt"] == first["prompt"])
    assert kept["responses"][0]["role"] == "positive" and "made" not in kept["responses"][0]
    assert {line["id"]: line["decision"] for line in lines(audit.path_of(out))}[first["id"]] == "keep"


def test_a_cascade_clears_what_margins_called_wrong(world, tmp_path):
    """The judge finds small letters right: what was planted (small chosen) is right to it."""
    judge = "judges={function: {name: tests.negatives.test_repair.is_small}}"
    rows = repaired(world, tmp_path / "a.jsonl", "repair.cascade=[function]", judge, f"output={tmp_path / 'a'}")
    facts = json.loads((tmp_path / "a.jsonl.json").read_text())
    assert len(rows) >= 39 and facts["cost"]["judges"]["function"]["pairs"] == facts["suspects"] >= 5
    every = ["repair={suspects: all, cascade: [function], action: relabel}", judge, f"output={tmp_path / 'b'}"]
    rows = repaired(world, tmp_path / "b.jsonl", *every)
    relabelled = [row for row in rows if [one["role"] for one in row["responses"]] == ["positive", "positive"]]
    assert len(relabelled) == 40 - len(PLANTED)


def test_what_is_told(world, tmp_path):
    with pytest.raises(UserError, match="is one of the files that are read"):
        repaired(world, world / "rows.jsonl")
    few, equal, alone = (tmp_path / name for name in ("few.jsonl", "equal.jsonl", "alone.jsonl"))
    few.write_text("".join((world / "rows.jsonl").read_text().splitlines(keepends=True)[:5]))
    row = json.dumps({"prompt": "Q", "chosen": "same", "rejected": "same"}) + "\n"
    equal.write_text(row * 25)
    alone.write_text(json.dumps({"prompt": "Q", "negatives": ["x"], "positives": []}) + "\n")
    state, out = f"output={tmp_path / 'state'}", tmp_path / "out.jsonl"
    unreachable = "judges={llm: {url: http://127.0.0.1:9, model: m, retries: 0, requests_per_minute: 6000}}"
    with pytest.raises(UserError, match=r"judges.llm: http://127.0.0.1:9 gave no usable reply on 5 answers in a row"):
        repaired(world, out, "repair={suspects: all, cascade: [llm]}", unreachable, state)
    assert not out.exists()
    for file, message in ((few, "5 pairs are too few"), (equal, "all pairs are equal"), (alone, "needs pairs")):
        with pytest.raises(UserError, match=message):
            repaired(world, out, f"data.sources=[{file}]", state)
