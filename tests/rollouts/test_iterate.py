"""The pipeline sample, judge, train on a tiny model: what flows through, what is kept, how it is gone on with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from align import generation, recipe
from align.data import sources
from align.data.ledger import Ledger
from align.errors import UserError
from align.judges import consensus
from align.rollouts import iterate
from tests import rollout_worlds
from tests.rollout_worlds import is_even, lines


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder in which two rounds have been run."""
    folder = tmp_path_factory.mktemp("pipeline")
    iterate.iterate(recipe.load(rollout_worlds.make(folder)), rounds=2)
    return folder


@pytest.fixture
def copy(world, tmp_path) -> Path:
    """The same finished run in a place of its own; its models stay where they are."""
    shutil.copytree(world / "out", tmp_path / "out")
    return tmp_path / "out"


def test_roll_outs_are_records_with_a_verdict(world):
    rows = lines(world / "out/round-0/rollouts.jsonl")
    assert len(rows) == 8 and len({row["key"] for row in rows}) == 8
    read = sources.read(str(world / "out/round-0/rollouts.jsonl"), "train", on_bad_rows="stop", ledger=Ledger())
    assert [example.key for example in read] == [row["key"] for row in rows]
    told = {"positive": True, "negative": False, "sample": None}
    answers = [one for row in rows for one in row["responses"]]
    assert len(answers) + sum(row["empty"] for row in rows) == 8 * 4
    for one in answers:
        if one.get("note") == "truncated":
            assert one["role"] == "sample" and len(one["behavior_logps"]) == 24
        else:
            assert is_even(None, one["text"], []) is told[one["role"]]
        assert one.get("reward") == {"positive": 1.0, "negative": -1.0}.get(one["role"])
    assert {one["role"] for one in answers} == {"positive", "negative", "sample"}
    assert all(row["reference"] == [f"answer\n{row['prompt'].split()[1][:-1]}"] for row in rows)


def test_what_is_trained_on_is_mixed_groups_with_steps_by_all_judges(world):
    folder = world / "out/round-0"
    rows, judged = lines(folder / "rollouts.jsonl"), lines(folder / "judged.jsonl")
    mixed = [row["key"] for row in rows if {"positive", "negative"} <= {one["role"] for one in row["responses"]}]
    assert [row["key"] for row in judged] == mixed and 0 < len(mixed)
    said = {
        name: {(one["key"], one["response"]): one for one in lines(folder / f"judgements-{name}.jsonl")}
        for name in ("rollout", "function")
    }
    found = set()
    for row in judged:
        for index, one in enumerate(row["responses"]):
            assert ("steps" in one) == (one["role"] == "negative")
            if one["role"] == "negative":
                own = {name: table[row["key"], index]["scores"] for name, table in said.items()}
                labels = consensus.labels(own, {"rollout": 0.5, "function": 0.5}, len(one["steps"]))
                assert [step["label"] for step in one["steps"]] == labels
                assert one["steps"][-1]["end"] == len(one["text"])
                found |= set(labels)
    assert {1, -1} & found
    assert json.loads((folder / "judged.json").read_text())["groups"]["used"] == len(mixed)


def test_each_round_goes_on_from_the_policy_of_the_last(world):
    made = [json.loads((world / f"out/round-{n}/rollouts.json").read_text())["made_by"] for n in (0, 1)]
    assert made[0]["model"].endswith("out/warm/policy") and made[1]["model"].endswith("out/round-0/train/policy")
    assert made[0]["weights_sha256"] != made[1]["weights_sha256"]
    run = recipe.load(world / "out/round-1/train/recipe.yaml")  # an ordinary recipe
    assert run.rollouts is None and run.objective["name"] == "bcpg"
    assert run.model.path == made[1]["model"] and run.data.sources[0].path.endswith("round-1/judged.jsonl")
    one, two = (lines(world / f"out/round-{n}/rollouts.jsonl") for n in (0, 1))
    assert {row["key"] for row in one} != {row["key"] for row in two}  # the next part of the prompts
    held_out = {row["key"] for row in lines(world / "out/round-0/heldout.jsonl")}
    assert not held_out & {row["key"] for row in [*one, *two]}


def test_the_report_counts_held_out_answers(world):
    found = json.loads((world / "out/pass_at_k.json").read_text())["policies"]
    assert list(found) == ["before", "round 1: bcpg", "round 2: bcpg", "round 2: nll"]
    for name, folder in (
        ("before", "round-0"),
        ("round 1: bcpg", "round-0/train"),
        ("round 2: nll", "round-1/against-0"),
    ):
        rows = lines(world / "out" / folder / "heldout.jsonl")
        right = {row["key"]: sum(one["role"] == "positive" for one in row["responses"]) for row in rows}
        assert sorted(count for _, count in found[name]["counts"][0]) == sorted(right.values())
        assert found[name]["pass@1"][0] == pytest.approx(sum(right.values()) / 12)
    assert "round 2: bcpg minus before: pass@1" in iterate.table(
        iterate.report([{"before": [(4, 1)], "round 2: bcpg": [(4, 2)]}], 4)
    )


def test_a_finished_run_draws_and_trains_nothing_again(world, monkeypatch):
    before = {file: file.read_bytes() for file in (world / "out").rglob("*.jsonl")}
    monkeypatch.setattr(generation, "draw", lambda *given: pytest.fail("drew"))
    iterate.iterate(recipe.load(world / "recipe.yaml"), rounds=2)
    assert {file: file.read_bytes() for file in (world / "out").rglob("*.jsonl")} == before


@pytest.mark.parametrize("kept", [0, 1, 4, 5, 7])
def test_roll_outs_cut_off_anywhere_are_gone_on_with(world, copy, kept):
    """Also in the middle of a batch of three prompts, which is drawn again as a whole."""
    own = recipe.load(world / "recipe.yaml")
    folder, whole = copy / "round-0", (world / "out/round-0/rollouts.jsonl").read_bytes()
    cut = b"".join(whole.splitlines(keepends=True)[:kept])
    (folder / "rollouts.jsonl").write_bytes(cut + whole[len(cut) :][:40])
    about = json.loads((folder / "rollouts.json").read_text())
    (folder / "rollouts.json").write_text(json.dumps(about | {"finished": None}))
    policy = generation.load_policy(own, str(world / "out/warm/policy"))
    iterate.sample_round(own, 0, folder, policy)
    assert (folder / "rollouts.jsonl").read_bytes() == whole


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_judgements_cut_off_anywhere_are_gone_on_with(world, copy, kept):
    own = recipe.load(world / "recipe.yaml")
    folder, done = copy / "round-0", world / "out/round-0"
    whole = (done / "judgements-rollout.jsonl").read_bytes()
    (folder / "judgements-rollout.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:kept]) + b'{"key"')
    (folder / "judged.jsonl").unlink()
    policy = generation.load_policy(own, str(world / "out/warm/policy"))
    iterate.judge_round(own, folder, iterate.judges_load.load(own, lambda: policy))
    for name in ("judgements-rollout.jsonl", "judged.jsonl"):
        assert (folder / name).read_bytes() == (done / name).read_bytes()


def test_another_recipe_does_not_go_on(world, copy):
    with pytest.raises(UserError, match="another recipe has written here"):
        iterate.write_recipe(recipe.load(world / "recipe.yaml", ["warm_start.max_steps=3"]), copy)
    iterate.write_recipe(recipe.load(world / "recipe.yaml", ["train.save_every=3", "rollouts.against=[]"]), copy)
    with pytest.raises(UserError, match="another recipe has written here"):
        iterate.iterate(recipe.load(world / "recipe.yaml", ["sampling.k=3"]), rounds=1)


def test_groups_of_one_cannot_be_learned_from(world, tmp_path):
    own = recipe.load(world / "recipe.yaml", ["sampling.k=1", f"output={tmp_path}"])
    policy = generation.load_policy(own, str(world / "out/warm/policy"))
    iterate.sample_round(own, 0, tmp_path, policy)
    with pytest.raises(UserError, match="none of 8 prompts has both a right and a wrong answer"):
        iterate.judge_round(own, tmp_path, [])


def test_prompts_without_room_for_an_answer_are_told(world, tmp_path):
    own = recipe.load(world / "recipe.yaml", ["sampling.max_new_tokens=150", f"output={tmp_path}"])
    policy = generation.load_policy(own, str(world / "out/warm/policy"))
    with pytest.raises(UserError, match=r"of answer are over data\.max_length"):
        iterate.sample_round(own, 0, tmp_path, policy)
