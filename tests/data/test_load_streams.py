"""A recipe whose rows are streamed: what a look tells before the run, and the same rows as from memory."""

from __future__ import annotations

import dataclasses
import gzip
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest

from align import objectives
from align.data import load_streams, sources
from align.data.ledger import Ledger
from align.data.load import load
from align.data.load_streams import Streams, is_streamed
from align.data.options import Data, Mix, Source
from align.errors import UserError
from align.recipe import Eval, Recipe, Retain, Train
from tests import tiny

TOKENIZER = tiny.tokenizer()


def write(file: Path, rows) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def pairs(count: int, name: str = "p") -> list[dict]:
    return [{"prompt": f"{name}{n}", "positives": [f"yes {n}"], "negatives": [f"no {n}"]} for n in range(count)]


def labelled(goods: int, bads: int) -> list[dict]:
    rows = [{"prompt": f"g{n}", "completion": f"yes {n}", "label": True} for n in range(goods)]
    return rows + [{"prompt": f"b{n}", "completion": f"no {n}", "label": False} for n in range(bads)]


def recipe(*paths: str, objective: str = "dpo", weights=(), retain: str = "", holdout: float = 0.0, **more) -> Recipe:
    train = {key: more.pop(key) for key in ("max_steps", "epochs", "prompts_per_step", "seed") if key in more}
    weights = weights or [1.0] * len(paths)
    data = {"streaming": "always", "max_length": 64} | more
    return Recipe(
        name="test", objective={"name": objective}, output="nowhere",
        data=Data(sources=[Source(path=p, weight=w) for p, w in zip(paths, weights, strict=True)], **data),
        retain=Retain(sources=[Source(path=retain)] if retain else []),
        eval=Eval(sources=[], holdout=holdout), train=Train(**{"prompts_per_step": 4} | train),
    )  # fmt: skip


def streams(given: Recipe) -> Streams:
    return Streams(given, TOKENIZER, objectives.load(given.objective["name"])())


def rows_of(given: Recipe) -> list[list]:
    feed = streams(given).feed(given)
    return [feed.rows(step) for step in range(len(feed))]


def test_an_epoch_has_the_rows_that_memory_has(tmp_path):
    """Row by row the same tokens, weights, roles and places."""
    rows = [
        *pairs(40),
        {"prompt": "alone", "negatives": ["No."]},
        {"prompt": "x" * 100, "positives": ["a"], "negatives": ["b"]},
    ]
    path = write(tmp_path / "my.jsonl", rows)
    given = recipe(path, max_steps=10)
    memory = load(given, TOKENIZER, objectives.load("dpo")())
    stream = streams(given)
    feed = stream.feed(given)
    found = [row for step in range(len(feed)) for row in feed.rows(step)]
    key = lambda row: int(str(row.example.place).rpartition(":")[2])  # noqa: E731
    for mine, other in zip(sorted(found, key=key), sorted(memory.train, key=key), strict=True):
        assert (mine.prompt_ids, mine.responses) == (other.prompt_ids, other.responses)
        assert str(mine.example.place) == other.example.place
    assert feed.everything(stream.ledger).dropped == memory.ledger.dropped
    assert feed.everything(stream.ledger).used == memory.ledger.used == 40


@pytest.mark.parametrize(("streaming", "expected"), [("always", True), ("never", False), ("auto", False)])
def test_small_files_are_read_whole_unless_asked(tmp_path, streaming, expected):
    assert is_streamed(recipe(write(tmp_path / "my.jsonl", pairs(3)), streaming=streaming)) is expected


def test_large_files_are_streamed(tmp_path, monkeypatch):
    monkeypatch.setattr(load_streams, "LARGE", 500)
    large, small = write(tmp_path / "a.jsonl", pairs(30)), write(tmp_path / "b.jsonl", pairs(1))
    assert is_streamed(recipe(small, large, streaming="auto")) and not is_streamed(recipe(small, streaming="auto"))
    assert is_streamed(recipe(small, retain=large, streaming="auto"))


@pytest.mark.parametrize(("epochs", "steps"), [(1, 10), (2.5, 25), (0.01, 1)])
def test_steps_are_derived_from_the_size(tmp_path, epochs, steps):
    given = recipe(write(tmp_path / "my.jsonl", pairs(40)), epochs=epochs)
    assert len(streams(given).feed(given)) == steps


def test_steps_leave_room_for_what_is_held_out(tmp_path):
    given = recipe(write(tmp_path / "my.jsonl", pairs(400)), holdout=0.25)
    stream = streams(given)
    feed = stream.feed(given)
    assert len(feed) == 75
    held = {row.example.prompt for one in stream.held_out for row in one.rows}
    seen = {row.example.prompt for step in range(len(feed)) for row in feed.rows(step)}
    assert 60 < len(held) < 140 and not held & seen
    memory = load(given, TOKENIZER, objectives.load("dpo")())
    assert held == {row.example.prompt for one in memory.held_out for row in one.rows}


def test_a_size_that_nothing_tells_wants_max_steps(tmp_path):
    (tmp_path / "my.json").write_text(json.dumps(pairs(12)))
    given = recipe(str(tmp_path / "my.json"))
    with pytest.raises(UserError, match=r"train\.max_steps: cannot be derived: how many rows .* has is not known"):
        streams(given).feed(given)
    assert len(rows_of(recipe(str(tmp_path / "my.json"), max_steps=3))) == 3


def test_weights_count_rows_as_in_memory(tmp_path):
    """Sources of 30 and 10 rows, the second at weight 2: 30 to 20."""
    paths = [write(tmp_path / "a.jsonl", pairs(30, "a")), write(tmp_path / "b.jsonl", pairs(10, "b"))]
    given = recipe(*paths, weights=[1.0, 2.0], max_steps=25)
    count = Counter(row.example.prompt[0] for rows in rows_of(given) for row in rows)
    assert count == {"a": 60, "b": 40}


# Roles


def roles(rows) -> Counter:
    return Counter(response.role for row in rows for response in row.responses)


@pytest.mark.parametrize("streaming", ["always", "never"])
def test_no_step_brings_one_role_alone(tmp_path, streaming):
    """One good answer to nine bad ones, in one file, the good ones in front."""
    given = recipe(write(tmp_path / "my.jsonl", labelled(6, 54)), objective="kto", streaming=streaming, epochs=2)
    rows = Streams if streaming == "always" else load
    feed = rows(given, TOKENIZER, objectives.load("kto")()).feed(given)
    steps = [roles(feed.rows(step)) for step in range(len(feed))]
    assert len(steps) == 30 and all(step[1] and step[-1] for step in steps)


@pytest.mark.parametrize("streaming", ["always", "never"])
def test_a_fixed_ratio(tmp_path, streaming):
    given = recipe(write(tmp_path / "my.jsonl", labelled(10, 40)), objective="kto", streaming=streaming,
                   mix=Mix(positives=0.5), max_steps=20)  # fmt: skip
    rows = Streams if streaming == "always" else load
    feed = rows(given, TOKENIZER, objectives.load("kto")()).feed(given)
    found = [feed.rows(step) for step in range(len(feed))]
    assert all(roles(step) == {1: 2, -1: 2} for step in found)
    assert sorted(feed.epochs().values()) == [1.0, 4.0]
    assert {row.example.prompt for step in found for row in step} == {row["prompt"] for row in labelled(10, 40)}


@pytest.mark.parametrize("streaming", ["always", "never"])
def test_a_ratio_that_changes_over_the_run(tmp_path, streaming):
    given = recipe(write(tmp_path / "my.jsonl", labelled(20, 20)), objective="kto", streaming=streaming,
                   mix=Mix(positives=0.75, final=0.25), max_steps=21, prompts_per_step=8)  # fmt: skip
    rows = Streams if streaming == "always" else load
    feed = rows(given, TOKENIZER, objectives.load("kto")()).feed(given)
    goods = [roles(feed.rows(step))[1] for step in range(len(feed))]
    assert goods[0] == 6 and goods[-1] == 2 and sum(goods) == pytest.approx(84, abs=1)
    assert all(abs(count - (6 - 0.2 * step)) < 1.01 for step, count in enumerate(goods))


@pytest.mark.parametrize("streaming", ["always", "never"])
def test_a_ratio_cuts_rows_with_both_roles_in_two(tmp_path, streaming):
    given = recipe(write(tmp_path / "my.jsonl", pairs(8)), objective="kto", streaming=streaming,
                   mix=Mix(positives=0.25), max_steps=8)  # fmt: skip
    rows = Streams if streaming == "always" else load
    feed = rows(given, TOKENIZER, objectives.load("kto")()).feed(given)
    found = [feed.rows(step) for step in range(len(feed))]
    assert all(roles(step) == {1: 1, -1: 3} for step in found)


@pytest.mark.parametrize("streaming", ["always", "never"])
def test_a_ratio_of_what_is_not_there(tmp_path, streaming):
    given = recipe(write(tmp_path / "my.jsonl", labelled(0, 9)), objective="kto", mix=Mix(positives=0.5),
                   streaming=streaming)  # fmt: skip
    with pytest.raises(UserError, match=r"data\.mix: mixes positives and negatives, but all rows are negatives"):
        (Streams if streaming == "always" else load)(given, TOKENIZER, objectives.load("kto")())


# What is told before the run


@pytest.mark.parametrize("broken", ['{"prompt": "a", "negatives": [""]}', "{", '{"prompt": null, "negatives": ["x"]}'])
def test_a_broken_row_among_the_first_stops_before_the_run(tmp_path, broken):
    file = tmp_path / "my.jsonl"
    file.write_text("\n".join([*map(json.dumps, pairs(5)), broken, *map(json.dumps, pairs(500))]))
    with pytest.raises(UserError, match=r"my\.jsonl:6: "):
        streams(recipe(str(file)))
    given = recipe(str(file), on_bad_rows="skip", max_steps=127)
    stream = streams(given)
    feed = stream.feed(given)
    for step in range(len(feed)):
        feed.rows(step)
    whole = feed.everything(stream.ledger).as_dict()
    assert whole["dropped"]["broken"]["count"] in (1, 2), "the second epoch has begun"
    assert "my.jsonl:6: " in whole["dropped"]["broken"]["first"][0]


def test_a_broken_row_far_behind_stops_when_it_is_met(tmp_path):
    file = tmp_path / "my.jsonl"
    file.write_text("\n".join([*map(json.dumps, pairs(900)), "{", *map(json.dumps, pairs(10))]))
    given = recipe(str(file))
    stream = streams(given)
    feed = stream.feed(given)
    with pytest.raises(UserError, match=r"my\.jsonl:901: is not valid JSON at column 2; mend it, or use the good"):
        for step in range(len(feed)):
            feed.rows(step)


def test_rewards_count_only_if_all_looked_at_have_them(tmp_path):
    rows = [{"prompt": f"p{n}", "responses": [
        {"text": "a", "role": "positive", "reward": 1.0}, {"text": "b", "role": "negative", "reward": 0.0}]}
        for n in range(8)]  # fmt: skip
    given = recipe(write(tmp_path / "my.jsonl", rows), max_steps=2)
    assert all(one.reward is not None for step in rows_of(given) for row in step for one in row.responses)
    rows[3]["responses"][0].pop("reward")
    given = recipe(write(tmp_path / "my.jsonl", rows), max_steps=2)
    assert all(one.reward is None for step in rows_of(given) for row in step for one in row.responses)


def test_a_row_without_a_reward_far_behind_is_dropped(tmp_path):
    rows = [{"prompt": f"p{n}", "responses": [
        {"text": "a", "role": "positive", "reward": 1.0}, {"text": "b", "role": "negative", "reward": 0.0}]}
        for n in range(600)]  # fmt: skip
    rows[550]["responses"][0].pop("reward")
    given = recipe(write(tmp_path / "my.jsonl", rows), max_steps=160)
    feed = streams(given).feed(given)
    found = [row for step in range(160) for row in feed.rows(step)]
    assert len(found) == 640 and all(one.reward is not None for row in found for one in row.responses)
    assert set(feed.ledger.dropped) == {"row dropped: the first rows have rewards, a response here has none"}


def test_retain_rows_are_streamed_beside(tmp_path):
    path, held = write(tmp_path / "a.jsonl", pairs(12)), write(tmp_path / "b.jsonl", pairs(6, "r"))
    given = recipe(path, retain=held)
    stream = streams(given)
    feed = stream.retain_feed(given, 3)
    rows = list(itertools.chain(*(feed.rows(step) for step in range(3))))
    assert len(rows) == 12 and all(row.retain and roles([row]) == {1: 1} for row in rows)
    assert Counter(row.example.prompt for row in rows) == {f"r{n}": 2 for n in range(6)}
    bad = recipe(path, retain=write(tmp_path / "c.jsonl", [{"prompt": "a", "negatives": ["b"]}]))
    with pytest.raises(UserError, match=r"retain\.sources: no row has a positive"):
        streams(bad).retain_feed(bad, 3)


def test_no_usable_row(tmp_path):
    rows = [{"prompt": "a", "negatives": ["b"]}] * 3
    with pytest.raises(UserError, match=r"no row can be used \(row dropped: no positives: 3\)"):
        streams(recipe(write(tmp_path / "my.jsonl", rows)))


def test_samples_of_rows_to_come_cannot_be_drawn_at_the_start(tmp_path):
    given = recipe(write(tmp_path / "my.jsonl", pairs(9)), objective="d2o")
    with pytest.raises(UserError, match=r"^data\.streaming: samples cannot be drawn at the start .*sampling\.every=N$"):
        streams(given)
    drawn = dataclasses.replace(given, sampling=dataclasses.replace(given.sampling, every=2))
    assert len(streams(drawn).feed(drawn)) == 3


@pytest.mark.parametrize("on_bad_rows", ["stop", "skip"])
@pytest.mark.parametrize("how", ["always", "never"])
@pytest.mark.parametrize("cut", [1500, 9])
def test_a_damaged_archive_among_whole_ones(on_bad_rows, how, cut, tmp_path):
    """No half of it is trained on in silence; where the good rows are wanted they are used, and the damage told."""
    for n, text in enumerate("".join(json.dumps(row) + "\n" for row in pairs(900, f"p{n}-")) for n in range(2)):
        (tmp_path / f"{n}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    first = tmp_path / "0.jsonl.gz"
    first.write_bytes(first.read_bytes()[:-cut])
    given = recipe(f"{tmp_path}/*.gz", streaming=how, on_bad_rows=on_bad_rows, max_steps=600)

    def rows() -> Ledger:
        found = (Streams if how == "always" else load)(given, TOKENIZER, objectives.load("dpo")())
        feed = found.feed(given)
        seen = {row.example.prompt for step in range(len(feed)) for row in feed.rows(step)}
        assert {f"p1-{n}" for n in range(900)} <= seen and 900 < len(seen) <= 1800
        return feed.everything(found.ledger)

    if on_bad_rows == "stop":
        with pytest.raises(UserError, match=rf"^{first}:\d+: cannot be read to its end: .*; copy the file again$"):
            rows()
    else:
        (place,) = rows().places["file unreadable from here on"][:1]
        assert place.startswith(f"{first}:") and "cannot be read to its end" in place


def test_an_archive_that_breaks_at_once_has_the_rows_that_were_seen(tmp_path, monkeypatch):
    """The estimate of its size is nothing, and must not be what sources are mixed by."""
    monkeypatch.setattr(sources, "size", lambda path, split: 0.0)
    given = recipe(write(tmp_path / "my.jsonl", pairs(9)), retain=write(tmp_path / "retain.jsonl", pairs(3)))
    found = streams(given)
    assert len(found.feed(given)) == 3 and found.retain_feed(given, 3).rows(0)


@pytest.mark.parametrize("how", ["always", "never"])
def test_epochs_of_unequal_sources_are_told(how, tmp_path):
    """Ten rows, and thirty at twice the weight: 70 rows an epoch."""
    few, many = write(tmp_path / "few.jsonl", pairs(10, "f")), write(tmp_path / "many.jsonl", pairs(30, "m"))
    given = recipe(few, many, weights=(1.0, 2.0), streaming=how, prompts_per_step=7)
    feed = (Streams if how == "always" else load)(given, TOKENIZER, objectives.load("dpo")()).feed(given)
    for step in range(len(feed)):
        feed.rows(step)
    assert feed.epochs() == pytest.approx({few: 1.0, many: 2.0})
