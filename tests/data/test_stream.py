"""Rows that are read as a run goes on: every row once an epoch, the same steps on any number of ranks, exact resume."""

from __future__ import annotations

import itertools
import json
import random
from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from align.data import sources
from align.data.examples import Example, Response
from align.data.lanes import Lane
from align.data.ledger import Ledger
from align.data.mixture import Mixture, fixed
from align.data.stream import Channel, StreamFeed, own_lanes
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.errors import UserError
from tests.data.worlds import World

ALONE = World(1)


def write(folder: Path, name: str, count: int) -> str:
    draw = random.Random(name)
    rows = ({"n": f"{name}{n}", "pad": "x" * draw.choice((0, 5, 200))} for n in range(count))
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / f"{name}.jsonl")


def parse(place, row, ledger: Ledger, unusable: str = "") -> Example | None:
    ledger.read += 1
    if unusable and row["n"].endswith(unusable):
        ledger.drop("unusable", place)
        return None
    return Example(row["n"], (Response("yes", "positive"),), "test", place)


def encode(example: Example, ledger: Ledger, copies: int = 1):
    for copy in range(copies):
        text = example.prompt + "'" * copy
        yield TokenizedRow((1,), (TokenizedResponse((2,), 1),), Example(text, (), "test", example.place))


def channel(path, *, rank: int, world: int, lanes: int, buffer: int, ledger: Ledger, first: int = 0, **more) -> Channel:
    copies = more.pop("copies", 1)
    skips = more.pop("skips", False)
    opened = sources.parts(path, "", lanes)
    made = [
        Lane(f"{more.get('seed', 0)}/{Path(path).name}/{n}", part, partial(parse, unusable=more.get("unusable", "")),
             partial(encode, copies=copies), buffer, 10**6, skips, ledger) if own else None
        for n, (part, own) in enumerate(zip(opened, own_lanes(len(opened), first, rank, world), strict=True))
    ]  # fmt: skip
    return Channel(Path(path).stem, made, files=sources.sizes(path))


def feed(paths, rank=0, gather=None, *, world=1, steps=10, per_step=4, weights=None, lanes=4, buffer=5, **more):
    ledger = Ledger()
    channels = [
        channel(path, rank=rank, world=world, lanes=lanes, buffer=buffer, ledger=ledger, first=n * lanes, **more)
        for n, path in enumerate(paths)
    ]
    mixture = Mixture(fixed(weights or [1.0] * len(paths)), per_step)
    return StreamFeed(channels, mixture, steps, ledger=ledger, gather=gather or ALONE.gather(0))


def names(rows) -> list[str]:
    return [row.example.prompt for row in rows]


def course(stream: StreamFeed, first: int = 0) -> list[list[str]]:
    return [names(stream.rows(step)) for step in range(first, len(stream))]


# What is read


@pytest.mark.parametrize(("lanes", "buffer"), [(1, 1), (1, 7), (4, 1), (4, 5), (16, 100)])
def test_every_row_once_an_epoch(tmp_path, lanes, buffer):
    path = write(tmp_path, "a", 60)
    stream = feed([path], steps=45, per_step=4, lanes=lanes, buffer=buffer)
    rows = list(itertools.chain(*course(stream)))
    for epoch in range(3):
        assert sorted(rows[epoch * 60 : epoch * 60 + 60]) == sorted(f"a{n}" for n in range(60))
    assert stream.ledger.read == stream.ledger.used == 180
    assert stream.epochs() == {"a": 3.0}


def test_rows_are_shuffled_otherwise_in_each_epoch_and_for_each_seed(tmp_path):
    path = write(tmp_path, "a", 64)
    rows = list(itertools.chain(*course(feed([path], steps=32, buffer=8))))
    other = list(itertools.chain(*course(feed([path], steps=32, buffer=8, seed=1))))
    in_order = [f"a{n}" for n in range(64)]
    assert len({tuple(part) for part in (rows[:64], rows[64:], other[:64], in_order)}) == 4
    again = list(itertools.chain(*course(feed([path], steps=32, buffer=8))))
    assert rows == again


def test_a_buffer_as_large_as_a_part_shuffles_it_wholly(tmp_path):
    """Over 400 epochs every row of three is first about equally often."""
    path = write(tmp_path, "a", 3)
    rows = list(itertools.chain(*course(feed([path], steps=400, per_step=3, lanes=1, buffer=3))))
    first = Counter(rows[::3])
    assert all(100 < first[f"a{n}"] < 167 for n in range(3)), first


def test_unusable_rows_are_passed_over_and_counted(tmp_path):
    path = write(tmp_path, "a", 40)
    stream = feed([path], steps=10, per_step=4, unusable="3", lanes=1, buffer=1)
    rows = list(itertools.chain(*course(stream)))
    assert rows == [f"a{n}" for n in range(40) if n % 10 != 3] + ["a0", "a1", "a2", "a4"]
    assert stream.ledger.dropped == {"unusable": 5} and stream.ledger.read == 45
    assert stream.ledger.places["unusable"] == [f"{path}:{n}" for n in (4, 14, 24, 34)]


def test_a_source_without_a_usable_row_ends_the_run(tmp_path):
    stream = feed([write(tmp_path, "a", 1)], unusable="0")
    with pytest.raises(UserError, match="a: holds no usable row"):
        stream.rows(0)


def test_sources_are_mixed_by_weight_and_have_epochs_of_their_own(tmp_path):
    paths = [write(tmp_path, "a", 10), write(tmp_path, "b", 90)]
    stream = feed(paths, weights=[1.0, 3.0], steps=30, per_step=4)
    for rows in course(stream):
        assert Counter(name[0] for name in rows) == {"a": 1, "b": 3}
    assert stream.epochs() == {"a": 3.0, "b": 1.0}


# Ranks


@pytest.mark.parametrize("world", [2, 3, 7])
@pytest.mark.parametrize("copies", [1, 2])
def test_steps_do_not_depend_on_the_number_of_ranks(tmp_path, world, copies):
    """Seven ranks and two sources of one and three parts: some ranks read nothing."""
    paths = [write(tmp_path, "a", 2), write(tmp_path, "b", 50)]
    options = {"steps": 30, "lanes": 3, "weights": [1.0, 4.0], "unusable": "7", "copies": copies}
    expected = course(feed(paths, **options))

    def rank_course(rank, gather):
        stream = feed(paths, rank, gather, world=world, **options)
        return course(stream), stream.everything(Ledger()), stream.ledger.read

    results = World(world).run(rank_course)
    alone = feed(paths, **options)
    course(alone)
    assert all(found == expected for found, _, _ in results)
    assert all(whole.as_dict() == alone.ledger.as_dict() for _, whole, _ in results), "the first places, too"
    assert sum(read for _, _, read in results) == alone.ledger.read, "no row is read by two ranks"


def test_an_error_of_one_rank_reaches_all(tmp_path):
    path = write(tmp_path, "a", 40)
    seen = []

    def rank_course(rank, gather):
        stream = feed([path], rank, gather, world=3, steps=9, lanes=4)
        lane = stream.channels[0].lanes[2]
        if lane is not None:
            lane.encode = lambda example, ledger: (_ for _ in ()).throw(UserError("my.jsonl:7", "is odd", "mend it"))
        try:
            course(stream)
        except UserError as error:
            seen.append((rank, str(error)))

    World(3).run(rank_course)
    assert sorted(seen) == [(rank, "my.jsonl:7: is odd; mend it") for rank in range(3)]


# Going on


@pytest.mark.parametrize("stop", [0, 1, 4, 5, 13, 29])
@pytest.mark.parametrize("before, after", [(1, 1), (1, 3), (3, 1), (2, 3)])
@pytest.mark.parametrize("copies", [1, 3])
def test_a_stream_goes_on_where_it_was(tmp_path, stop, before, after, copies):
    paths = [write(tmp_path, "a", 9), write(tmp_path, "b", 50)]
    options = {"steps": 30, "lanes": 4, "weights": [1.0, 4.0], "unusable": "7", "copies": copies}
    alone = feed(paths, **options)
    expected = course(alone)

    def first(rank, gather):
        stream = feed(paths, rank, gather, world=before, **options)
        for step in range(stop):
            stream.rows(step)
        return json.dumps(stream.state())

    state, *others = World(before).run(first)
    assert all(other == state for other in others)

    def second(rank, gather):
        stream = feed(paths, rank, gather, world=after, **options)
        stream.restore(json.loads(state), stop, rank == 0)
        return course(stream, stop), stream.everything(Ledger()).as_dict()

    for rows, whole in World(after).run(second):
        assert rows == expected[stop:]
        assert whole == alone.ledger.as_dict(), "the first places, too"


@pytest.mark.parametrize("stop", [5, 6, 8, 9])
def test_rows_read_ahead_are_not_lost(tmp_path, stop):
    """Samples are drawn for five steps at once; the run is killed within them."""
    path = write(tmp_path, "a", 50)
    expected = course(feed([path], steps=20))
    stream = feed([path], steps=20)
    for step in range(stop):
        if step % 5 == 0:
            assert names(stream.between(step, step + 5)) == list(itertools.chain(*expected[step : step + 5]))
        assert names(stream.rows(step)) == expected[step]
    state = json.loads(json.dumps(stream.state()))
    other = feed([path], steps=20)
    other.restore(state, stop, True)
    begin = stop // 5 * 5
    assert names(other.between(begin, begin + 5)) == list(itertools.chain(*expected[stop : begin + 5]))
    assert course(other, stop) == expected[stop:]


def test_going_on_reads_no_row_twice(tmp_path, monkeypatch):
    """Of 2000 rows 1500 are done; what is read again is what waits in the buffers, from the checkpoint."""
    path = write(tmp_path, "a", 2000)
    stream = feed([path], steps=500, lanes=2, buffer=20)
    for step in range(375):
        stream.rows(step)
    state = json.loads(json.dumps(stream.state()))
    other, count = feed([path], steps=500, lanes=2, buffer=20), Counter()
    real = json.loads
    monkeypatch.setattr("align.data.readers.json.loads", lambda text: count.update(["row"]) or real(text))
    other.restore(state, 375, True)
    assert not count
    rest = list(itertools.chain(*course(other, 375)))
    assert len(rest) == 500 and count["row"] < 500


@pytest.mark.parametrize("change", ["shorter", "longer", "gone", "new"])
def test_a_stream_does_not_go_on_in_files_that_were_changed(tmp_path, change):
    """A byte more or less and every place in them would be another one."""
    write(tmp_path, "a", 40), write(tmp_path, "b", 40)
    path = f"{tmp_path}/*.jsonl"
    state = json.loads(json.dumps(feed([path]).state()))
    feed([path]).restore(state, 0, True)
    file = tmp_path / "b.jsonl"
    size = file.stat().st_size
    if change == "gone":
        file.unlink()
    elif change == "new":
        file = Path(write(tmp_path, "c", 3))
    else:
        file.write_bytes(file.read_bytes()[:-1] if change == "shorter" else file.read_bytes() + b"\n")
    with pytest.raises(UserError) as error:
        feed([path]).restore(state, 0, True)
    had = {"new": "none"}.get(change, f"{size:,} bytes")
    has = {"gone": "none"}.get(change, f"{file.stat().st_size:,} bytes" if file.exists() else "")
    assert str(error.value) == (
        f"{file}: is not as it was when the checkpoint was written: {had} then, {has} now; "
        "put it back, or begin anew with train.resume=false"
    )


# Damage


def test_a_broken_archive_stops_or_is_left_where_it_breaks(tmp_path):
    import gzip

    for n in range(2):
        text = "".join(json.dumps({"n": f"{n}-{i}", "x": random.Random(i).random()}) + "\n" for i in range(400))
        (tmp_path / f"{n}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    first = tmp_path / "0.jsonl.gz"
    first.write_bytes(first.read_bytes()[:-2000])
    with pytest.raises(UserError, match=r"0\.jsonl\.gz:\d+: cannot be read to its end"):
        course(feed([f"{tmp_path}/*.gz"], steps=200, lanes=1))
    stream = feed([f"{tmp_path}/*.gz"], steps=180, lanes=1, skips=True)
    rows = Counter(itertools.chain(*course(stream)))
    assert {f"1-{i}" for i in range(400)} <= rows.keys()
    assert stream.ledger.dropped["file unreadable from here on"] == 1
