"""`align mine` from rows to chosen negatives: what is written, gone on with, and told of mistakes."""

from __future__ import annotations

import json
import sys
import time

import numpy as np
import pytest
import torch

from align import job
from align import recipe as recipes
from align.cli import run as align
from align.data.examples import parse_row
from align.errors import UserError
from align.negatives import heads, mining_report, scorers
from align.negatives.mining_report import Reservoir
from align.negatives.scorers import LogProbs, Rewards, Vectors
from tests.commands import kill, metrics, run, start
from tests.negatives import mining_worlds
from tests.negatives.mining_worlds import lines

ALIGN = [sys.executable, "-m", "align.cli", "mine"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return mining_worlds.make(tmp_path_factory.mktemp("mining"))


def mine(recipe, output, *overrides: str) -> list[dict]:
    align(["mine", str(recipe), f"output={output}", *overrides])
    return lines(output / "mined.jsonl")


def report(output) -> dict:
    return json.loads((output / "mined.json").read_text())["report"]


def negatives(row: dict) -> list[dict]:
    return [one for one in row["responses"] if one["role"] == "negative"]


def only(tmp_path, *rows: dict) -> str:
    mining_worlds.write(tmp_path / "own.jsonl", list(rows))
    return f"data.sources=[{tmp_path / 'own.jsonl'}]"


def test_each_row_has_its_positives_and_the_best_negatives(recipe, tmp_path, capsys):
    found = mine(recipe, tmp_path / "out", "mining.scores=[relevance, similarity]")
    assert [row["prompt"] for row in found] == [row["prompt"] for row in mining_worlds.rows()]
    for row, given in zip(found, mining_worlds.rows(), strict=True):
        assert [one["text"] for one in row["responses"][:1]] == given["positives"]
        chosen = negatives(row)
        assert len(chosen) == 2 and {one["text"] for one in chosen} < set(given["negatives"])
        assert all(one["made"]["by"] == "mine" and one["made"]["strategy"] == "top_k" for one in chosen)
        assert chosen[0]["made"]["scores"]["relevance"] >= chosen[1]["made"]["scores"]["relevance"]
        assert chosen[0]["made"]["from"] == "own" and chosen[0]["made"]["scores"].keys() == {"relevance", "similarity"}
        assert len(parse_row(row, source="", place="").responses) == 3  # a record
    told = report(tmp_path / "out")
    assert (told["prompts_with_negatives"], told["candidates"], told["chosen"]) == (12, 72, 24)
    assert told["refused"] == {"not picked by the strategy": 48}
    counts = {group: told["scores"]["similarity"][group]["count"] for group in ("positives", "chosen", "refused")}
    assert counts == {"positives": 12, "chosen": 24, "refused": 48}
    assert told["scores"]["relevance"]["chosen"]["mean"] > told["scores"]["relevance"]["refused"]["mean"]
    assert "24 chosen of 72 candidates" in capsys.readouterr().out


@pytest.mark.parametrize(
    "strategy", ["random", "ambiguous", "runner_up", "clusters", "percentage, share: 1", "margin, margin: 0"]
)
def test_every_strategy_chooses_the_same_again_and_asks_no_model(recipe, tmp_path, strategy, monkeypatch):
    mine(recipe, tmp_path / "first")

    def none(*args):
        raise AssertionError("a model was asked")

    monkeypatch.setattr(Vectors, "encode", none)
    named = f"mining.strategy={{name: {strategy}}}"
    one, other = (mine(recipe, tmp_path / name, named) for name in ("one", "other"))
    assert one == other and len(one) == 12
    assert {entry["made"]["strategy"] for row in one for entry in negatives(row)} == {strategy.split(",")[0]}
    if strategy == "random":
        assert mine(recipe, tmp_path / "seed", named, "train.seed=1") != one


def test_what_is_right_or_there_twice_is_refused(recipe, tmp_path):
    row = {
        "prompt": "2 + 2?",
        "positives": ["It is 4."],
        "negatives": ["it is  4.", "4 surely", "5", "5 ", "none", "7"],
    }
    found = mine(recipe, tmp_path / "out", only(tmp_path, row), "mining.verifier.name=numeric", "mining.keep=9")
    assert sorted(one["text"] for one in negatives(found[0])) == ["5", "7"]
    assert report(tmp_path / "out")["refused"] == {
        "the same as a positive": 1, "right by the verifier": 1, "the same as another candidate": 1,
        "not decided by the verifier": 1,
    }  # fmt: skip


def test_what_another_file_knows_to_be_right_is_no_negative(recipe, tmp_path):
    """What was sampled and found right; and what was cut off, of which nobody knows."""
    row = {"prompt": "A?", "positives": ["a"], "negatives": ["also right", "wrong"]}
    sampled = [
        {"text": "Also  right", "role": "positive"}, {"text": "cut o", "role": "sample", "note": "truncated"},
        {"text": "free", "role": "sample"}, {"text": "wrong too", "role": "negative", "note": "a program's error"},
    ]  # fmt: skip
    mining_worlds.write(tmp_path / "sampled.jsonl", [{"prompt": "A?", "responses": sampled}])
    given = (only(tmp_path, row), "mining.keep=9", f"mining.files=[{tmp_path}/sampled.jsonl]")
    (found,) = mine(recipe, tmp_path / "out", *given)
    assert sorted(one["text"] for one in negatives(found)) == ["free", "wrong", "wrong too"]
    assert report(tmp_path / "out")["refused"] == {"the same as a positive": 1}
    dropped = json.loads((tmp_path / "out" / "mined.json").read_text())["rows"]["dropped"]
    assert dropped["sample that was not decided: no candidate"]["count"] == 1


def test_a_prompt_of_several_rows_is_chosen_for_alike_in_any_order(recipe, tmp_path):
    rows = [{"prompt": f"Q{n}?", "positives": ["a"], "negatives": [f"w{k}"]} for n in range(9) for k in range(5)]
    given = ("mining.strategy.name=random", "mining.keep=2")
    one, other = (
        {row["prompt"]: row["responses"] for row in mine(recipe, tmp_path / name, only(tmp_path, *own), *given)}
        for name, own in (("forth", rows), ("back", rows[::-1]))
    )
    assert one == other and [len(own) for own in one.values()] == [3] * 9  # the positive once


def test_rows_without_a_prompt_have_no_neighbours(recipe, tmp_path):
    rows = [*mining_worlds.rows(3), *({"prompt": "", "positives": [word]} for word in ("red", "blue"))]
    found = mine(recipe, tmp_path / "out", only(tmp_path, *rows), "mining={own: false, neighbours: 4, keep: 9}",
                 f"mining.encoder={recipe.parent / 'encoder'}")  # fmt: skip
    assert [row["prompt"] for row in found] == [row["prompt"] for row in rows[:3]]
    assert not {"red", "blue"} & {one["text"] for row in found for one in negatives(row)}


def test_a_candidate_without_a_vector_has_no_place_in_a_cluster(recipe, tmp_path, monkeypatch):
    real = Vectors.compute

    def broken(self, items):
        return [None if item.response["text"] == "b" else value
                for item, value in zip(items, real(self, items), strict=True)]  # fmt: skip

    monkeypatch.setattr(Vectors, "compute", broken)
    row = {"prompt": "A?", "positives": ["a"], "negatives": ["b", "c", "d"]}
    given = ("mining.scores=[logp]", "mining.strategy={name: clusters}", "mining.keep=3")
    (found,) = mine(recipe, tmp_path / "out", only(tmp_path, row), *given)
    assert sorted(one["text"] for one in negatives(found)) == ["c", "d"]
    assert report(tmp_path / "out")["refused"] == {"no score": 1}


def test_ches_keeps_the_lowest_share_of_all_candidates(recipe, tmp_path):
    given = ("mining.scores=[logp]", "mining.encoder=null", "mining.keep=9")
    everything = mine(recipe, tmp_path / "all", *given, "mining.ches_keep=1")
    values = {
        (row["key"], one["text"]): one["made"]["scores"]["ches"] for row in everything for one in negatives(row)
    }  # fmt: skip
    assert len(values) == 72
    half = mine(recipe, tmp_path / "half", *given, "mining.ches_keep=0.5")
    kept = {(row["key"], one["text"]) for row in half for one in negatives(row)}
    assert kept == set(sorted(values, key=values.get)[:36])
    assert report(tmp_path / "half")["refused"] == {"pulls the positive down (CHES)": 36}


def test_neighbours_and_files_bring_candidates(recipe, tmp_path):
    rows = mining_worlds.rows()
    sampled = [{"prompt": rows[2]["prompt"], "responses": [{"text": "a sample", "role": "sample"}]}]
    mining_worlds.write(tmp_path / "sampled.jsonl", sampled)
    given = ("mining.own=false", "mining.keep=50", "mining.neighbours=3", f"mining.files=[{tmp_path}/sampled.jsonl]")
    found = mine(recipe, tmp_path / "out", *given)
    assert len(found) == 12
    positives = {row["key"]: row["responses"][0]["text"] for row in found}
    for row in found:
        for one in negatives(row):
            kind, _, key = one["made"]["from"].partition(" ")
            assert (kind, one["text"]) == ("file", "a sample") or (one["text"] == positives[key] and key != row["key"])
    assert sum(one["made"]["from"] == "file" for row in found for one in negatives(row)) == 1
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]


def test_how_a_candidate_was_made_before_is_kept(recipe, tmp_path):
    made = {"by": "degrade", "condition": "both"}
    row = {"prompt": "A?", "responses": [
        {"text": "a", "role": "positive"}, {"text": "b", "role": "negative", "made": made, "weight": 0.5}]}  # fmt: skip
    (found,) = mine(recipe, tmp_path / "out", only(tmp_path, row))
    assert found["responses"][1]["made"]["before"] == made and found["responses"][1]["weight"] == 0.5


def test_a_stopped_run_scores_only_what_is_missing(recipe, tmp_path, monkeypatch):
    """Stopped in its second batch of prompts; the third and fourth attempt compute the rest, and nothing."""
    monkeypatch.setattr("align.negatives.mining._TOGETHER", 4)
    real, asked = LogProbs.compute, []

    def counted(self, items):
        if len(asked) == 1 and not asked_again:
            raise KeyboardInterrupt
        asked.append(len(items))
        return real(self, items)

    monkeypatch.setattr(LogProbs, "compute", counted)
    given, asked_again = ("mining.scores=[logp_per_token]", "mining.encoder=null"), []
    with pytest.raises(KeyboardInterrupt):
        mine(recipe, tmp_path / "out", *given)
    assert asked == [28] and not (tmp_path / "out" / "mined.jsonl").exists()
    asked_again.append(True)
    found = mine(recipe, tmp_path / "out", *given)
    assert asked == [28, 28, 28]
    assert mine(recipe, tmp_path / "again", *given) == found and asked == [28, 28, 28]
    before = (tmp_path / "out" / "mined.jsonl").stat().st_mtime_ns
    mine(recipe, tmp_path / "out", *given)  # finished: left as it is
    assert (tmp_path / "out" / "mined.jsonl").stat().st_mtime_ns == before


def test_other_settings_are_refused_in_a_finished_output(recipe, tmp_path):
    mine(recipe, tmp_path / "out")
    with pytest.raises(UserError, match="was made with mining"):
        mine(recipe, tmp_path / "out", "mining.keep=1")


def test_rows_that_cannot_be_compared_are_counted(recipe, tmp_path):
    rows = [{"prompt": "A?", "negatives": ["b", "c"]}, *mining_worlds.rows(3)]
    given = (only(tmp_path, *rows), "mining.scores=[relevance]", "mining.strategy={name: margin, margin: 0}")
    mine(recipe, tmp_path / "out", *given)
    dropped = json.loads((tmp_path / "out" / "mined.json").read_text())["rows"]["dropped"]
    (place,) = dropped["prompt without negatives: no positive with a score to compare with"]["first"]
    assert place.endswith("own.jsonl:1")


def test_no_candidate_left_is_one_line_and_scores_are_kept(recipe, tmp_path, monkeypatch):
    given = ("mining.strategy={name: margin, margin: 1.9}",)
    with pytest.raises(UserError, match=r"no candidate is left of 12 prompts \(too close to the positive: 72\)"):
        mine(recipe, tmp_path / "out", *given)
    assert not (tmp_path / "out" / "mined.jsonl").exists()
    monkeypatch.setattr(Vectors, "encode", None)
    assert len(mine(recipe, tmp_path / "out", "mining.strategy={name: margin, margin: 0}")) > 0  # the same output


def test_rows_without_candidates_are_told(recipe, tmp_path):
    with pytest.raises(UserError, match=r"is left of 1 prompts \(prompt without negatives: no candidate: 1\)"):
        mine(recipe, tmp_path / "out", only(tmp_path, {"prompt": "A?", "positives": ["a"]}))


def test_equal_candidates_are_one_line(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(Rewards, "compute", lambda self, items: [scorers._packed(2.0) for _ in items])
    given = (
        "mining.scores=[reward]",
        "mining.encoder=null",
        f"mining.reward_model={recipe.parent / 'reward'}",
        "mining.keep=1",
    )
    with pytest.raises(
        UserError, match="by reward all candidates of each prompt are equal: there is nothing to choose"
    ):
        mine(recipe, tmp_path / "out", *given)
    assert len(mine(recipe, tmp_path / "out", *given, "mining.strategy.name=random")) == 12
    row = {"prompt": "A?", "positives": ["a"], "negatives": ["b", "b "]}  # one to choose from: nothing is undecided
    assert len(mine(recipe, tmp_path / "one", only(tmp_path, row))) == 1


def test_scores_that_are_no_number_are_told_and_not_kept(recipe, tmp_path, monkeypatch, capsys):
    real = heads.response_logps
    monkeypatch.setattr(heads, "response_logps", lambda model, batch: real(model, batch) * float("nan"))
    with pytest.raises(UserError, match=r"no candidate is left of 12 prompts \(no score: 72\)"):
        mine(recipe, tmp_path / "out", "mining.scores=[logp]", "mining.encoder=null")
    assert "log-probs of the policy: 84 have no score: too long to be read whole" in capsys.readouterr().out
    monkeypatch.setattr(heads, "response_logps", real)
    assert len(mine(recipe, tmp_path / "out", "mining.scores=[logp]", "mining.encoder=null")) == 12


def test_what_is_too_long_is_refused_alone(recipe, tmp_path):
    row = {"prompt": "A?", "positives": ["a"], "negatives": ["b " * 150, "c"]}
    (found,) = mine(recipe, tmp_path / "out", only(tmp_path, row), "mining.scores=[logp]", "mining.encoder=null")
    assert [one["text"] for one in negatives(found)] == ["c"]
    assert report(tmp_path / "out")["refused"] == {"no score": 1}


def test_mined_rows_are_trained_on_and_their_reference_is_known(recipe, tmp_path):
    """What mining scored under the model, a run with that reference does not score again."""
    mine(recipe, tmp_path / "out", "mining.scores=[logp]", "mining.encoder=null")
    given = [f"data.sources=[{tmp_path / 'out' / 'mined.jsonl'}]", "mining=null", f"output={tmp_path / 'run'}"]
    threads = torch.get_num_threads()
    job.train(recipes.load(recipe, [*given, "train.max_steps=1", "train.prompts_per_step=4", "eval={sources: []}"]))
    torch.set_num_threads(threads)
    (line,) = metrics(tmp_path / "run")
    assert line["reference/forwards"] == 0 and line["loss"] == pytest.approx(np.log(2), abs=1e-5)


def test_a_reservoir_keeps_a_fair_sample(monkeypatch):
    monkeypatch.setattr(mining_report, "_KEPT", 50)
    values, means = np.arange(1000.0), []
    for seed in range(40):
        own = Reservoir(seed)
        for first in range(0, 1000, 7):
            own.add(np.r_[values[first : first + 7], np.nan])
        assert own.count == 1000 and own.mean == pytest.approx(499.5) and len(own.values) == 50
        means.append(own.values.mean())
    assert np.mean(means) == pytest.approx(499.5, abs=30)  # 4.6 standard deviations


@pytest.mark.slow
def test_killed_it_comes_to_the_same_end(recipe, tmp_path):
    """SIGKILL once a batch of scores is there; gone on with, and against a run that was left alone."""
    rows = [dict(row, prompt=f"{row['prompt']} {n}") for n in range(30) for row in mining_worlds.rows()]
    own, given = only(tmp_path, *rows), ("mining.scores=[logp_per_token, similarity]", "mining.neighbours=2")
    whole = run(ALIGN, recipe, own, *given, f"output={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr[-3000:]
    process = start(ALIGN, recipe, own, *given, f"output={tmp_path / 'killed'}")
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / ".neighbours.i32").exists() and time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    kill(process)
    assert not (tmp_path / "killed" / "mined.jsonl").exists()
    last = run(ALIGN, recipe, own, *given, f"output={tmp_path / 'killed'}")
    assert last.returncode == 0, last.stderr[-3000:]
    assert (tmp_path / "killed" / "mined.jsonl").read_bytes() == (tmp_path / "whole" / "mined.jsonl").read_bytes()
    assert "mined.jsonl" in last.stdout.splitlines()[-1]
