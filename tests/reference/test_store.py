"""The store of log-probs: what is damaged is never returned, what is whole is found, many may write at once."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.reference import records
from align.reference.commands import entries
from align.reference.store import Store, identity, response_keys

WHO, OTHER = "ab" * 32, "cd" * 32


def key(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def values(number: int) -> np.ndarray:
    """Between 1 and 9 log-probs, the same ones for a number."""
    return -np.random.default_rng(number).random(1 + number % 9).astype(np.float32) * 5


def filled(folder: Path, count: int, *, first: int = 0, at_once: int = 5, **options) -> Store:
    store = Store(folder, WHO, **options)
    for begin in range(first, first + count, at_once):
        store.put({key(n): values(n) for n in range(begin, min(begin + at_once, first + count))})
    return store


def part(folder: Path, who: str = WHO) -> Path:
    """The only part file of a store."""
    (file,) = (folder / who).iterdir()
    return file


def held(store: Store, count: int) -> list[int]:
    """The numbers below `count` that the store has; whatever it has must be right, to the bit."""
    found = store.get([key(n) for n in range(count)])
    for number, given in enumerate(found):
        if given is not None:
            assert given.dtype == np.float32 and np.array_equal(given, values(number)), number
    return [number for number, given in enumerate(found) if given is not None]


def test_what_is_put_is_got_by_this_process_and_the_next(tmp_path):
    store = filled(tmp_path, 23)
    assert held(store, 30) == list(range(23))
    again = Store(tmp_path, WHO)
    assert (held(again, 30), again.damaged) == (list(range(23)), 0)


def test_a_store_that_is_only_read_makes_nothing(tmp_path):
    store = Store(tmp_path / "none", WHO)
    assert store.get([key(1)]) == [None] and store.num_entries == 0
    assert not (tmp_path / "none").exists()


def test_another_reference_finds_nothing(tmp_path):
    filled(tmp_path, 5)
    assert held(Store(tmp_path, OTHER), 5) == []


def test_every_single_byte_flipped(tmp_path):
    """One bit at each place of a small file in turn: one record at most is lost, none is wrong."""
    filled(tmp_path, 7)
    file, label = part(tmp_path), len(records.label(bytes.fromhex(WHO)))
    whole, chance = file.read_bytes(), random.Random(0)
    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        file.write_bytes(flipped)
        store = Store(tmp_path, WHO)
        assert len(held(store, 7)) == (7 if place < label else 6), place
        told = [entry for entry in entries(file, WHO) if entry.problem]
        assert len(told) == 1 and told[0].offset <= place, "and `verify` says where"
        is_last_head = place >= len(whole) - 64 - len(values(6)) * 4 and place < len(whole) - 16 - len(values(6)) * 4
        assert store.damaged == (0 if is_last_head else 1), "the head of the last record may be one that is written"


@pytest.mark.parametrize("seed", range(8))
def test_bytes_missing_inserted_and_overwritten(tmp_path, seed):
    """Damage costs the records it touches, and none behind them."""
    filled(tmp_path, 60)
    file, chance = part(tmp_path), random.Random(seed)
    whole = bytearray(file.read_bytes())
    begin, size = chance.randrange(len(whole) - 300), chance.randrange(1, 300)
    what = chance.choice(["missing", "inserted", "overwritten", "zeroed"])
    junk = {"missing": b"", "zeroed": bytes(size)}.get(what, chance.randbytes(size))
    damaged = whole[:begin] + junk + whole[begin if what == "inserted" else begin + size :]
    file.write_bytes(damaged)
    touched = 0
    offset = len(records.label(bytes.fromhex(WHO)))
    for number in range(60):
        end = offset + 64 + 4 * len(values(number))
        touched += offset < begin + (0 if what == "inserted" else size) and end > begin
        offset = end
    store = Store(tmp_path, WHO)
    assert len(held(store, 60)) == 60 - touched, what
    assert store.damaged >= bool(touched)


def test_cut_off_at_every_byte(tmp_path):
    """What a killed writer leaves: whole records before the cut are there, what is behind is not."""
    filled(tmp_path, 4)
    file = part(tmp_path)
    whole, ends, offset = file.read_bytes(), [], len(records.label(bytes.fromhex(WHO)))
    for number in range(4):
        offset += 64 + 4 * len(values(number))
        ends.append(offset)
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        assert held(Store(tmp_path, WHO), 4) == [number for number, end in enumerate(ends) if end <= size]


def test_damage_is_written_again_and_then_found(tmp_path):
    filled(tmp_path, 3)
    file = part(tmp_path)
    data = bytearray(file.read_bytes())
    data[-20] ^= 1  # in the last record's values
    file.write_bytes(data)
    store = Store(tmp_path, WHO)
    assert held(store, 3) == [0, 1]
    store.put({key(2): values(2)})
    assert held(store, 3) == held(Store(tmp_path, WHO), 3) == [0, 1, 2]


def test_records_of_another_reference_in_the_folder_are_not_returned(tmp_path, capsys):
    """A part put into the wrong folder, whole or without its label."""
    Store(tmp_path, OTHER).put({key(1): values(5)})
    foreign = part(tmp_path, OTHER)
    (tmp_path / WHO).mkdir()
    foreign.rename(tmp_path / WHO / "part-a.bin")
    store = Store(tmp_path, WHO)
    assert store.get([key(1)]) == [None] and store.damaged == 1
    assert "another reference" in capsys.readouterr().err
    data = (tmp_path / WHO / "part-a.bin").read_bytes()
    (tmp_path / WHO / "part-a.bin").write_bytes(data[48:])
    store = Store(tmp_path, WHO)
    assert store.get([key(1)]) == [None] and store.damaged == 1


def test_a_key_does_not_open_another_record(tmp_path):
    """Two whole records that changed places on disk: the index says one, the record another."""
    filled(tmp_path, 10, at_once=10)
    store, file = Store(tmp_path, WHO), part(tmp_path)
    data = file.read_bytes()
    first = data[48 : 48 + 64 + 4 * len(values(0))]
    ninth = data[len(data) - 64 - 4 * len(values(9)) :]
    assert len(first) == len(ninth)
    file.write_bytes(data[:48] + ninth + data[48 + len(first) : len(data) - len(ninth)] + first)
    assert held(store, 10) == list(range(1, 9)) and store.damaged == 2


def test_garbage_in_the_folder(tmp_path):
    filled(tmp_path, 3)
    (tmp_path / WHO / "part-x.bin").write_bytes(os.urandom(5000))
    (tmp_path / WHO / "part-empty.bin").touch()
    (tmp_path / WHO / "notes.txt").write_text("hello")
    (tmp_path / WHO / "part-folder").mkdir()
    assert held(Store(tmp_path, WHO), 5) == [0, 1, 2]


def test_another_version_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "VERSION", 2)
    filled(tmp_path, 3)
    monkeypatch.undo()
    store = Store(tmp_path, WHO)
    assert held(store, 3) == [] and store.damaged == 1


def test_records_larger_than_what_is_read_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "_BLOCK", 100)
    filled(tmp_path, 40)
    long = -np.arange(500, dtype=np.float32)
    store = Store(tmp_path, WHO)
    store.put({b"l" * 32: long})
    filled(tmp_path, 5, first=40)
    again = Store(tmp_path, WHO)
    assert held(again, 50) == list(range(45)) and np.array_equal(again.get([b"l" * 32])[0], long)


# Several processes


def test_what_others_write_is_seen(tmp_path):
    reader = Store(tmp_path, WHO)
    writer = filled(tmp_path, 3)
    assert held(reader, 9) == [0, 1, 2]
    writer.put({key(n): values(n) for n in range(3, 6)})
    assert held(reader, 9) == [0, 1, 2, 3, 4, 5]
    assert reader.damaged == 0


def test_a_record_that_is_being_written(tmp_path):
    """A reader that looks at every moment of a write sees what is whole, and the rest when it is there."""
    filled(tmp_path / "source", 3)
    data, target = part(tmp_path / "source").read_bytes(), tmp_path / "seen" / WHO / "part-0.bin"
    target.parent.mkdir(parents=True)
    target.touch()
    reader, counts = Store(tmp_path / "seen", WHO), []
    with open(target, "ab", buffering=0) as file:
        for at in range(len(data)):
            file.write(data[at : at + 1])
            counts.append(len(held(reader, 3)))
    assert counts == sorted(counts) and set(counts) == {0, 1, 2, 3} and reader.damaged == 0


def test_the_first_of_two_copies_counts_and_own_ones_come_first(tmp_path):
    """Two ranks that scored the same response: each finds after a resume what it used before."""
    for rank in (0, 1):
        Store(tmp_path, WHO, rank=rank).put({key(1): np.float32([-1 - rank])})
    for rank in (0, 1, 2):
        expected = -1.0 if rank == 2 else -1.0 - rank
        assert Store(tmp_path, WHO, rank=rank).get([key(1)])[0].tolist() == [expected]


WRITER = """
import sys
from tests.reference.test_store import Store, WHO, key, values
folder, rank, first, count = sys.argv[1], *map(int, sys.argv[2:])
store = Store(folder, WHO, rank=rank)
for begin in range(first, first + count, 7):
    store.put({key(n): values(n) for n in range(begin, min(begin + 7, first + count))})
    print(begin + 7, flush=True)
"""


def writer(folder: Path, rank: int, first: int, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), str(rank), str(first), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_writers_and_a_reader_at_once(tmp_path):
    """Their ranges overlap, so that some records are written twice."""
    reader = Store(tmp_path, WHO)
    writers = [writer(tmp_path, 0, 0, 2000), writer(tmp_path, 1, 1500, 2000)]
    seen = 0
    while any(one.poll() is None for one in writers):
        reader.refresh()
        now = len(held(reader, 3500))
        assert now >= seen
        seen = now
    assert [one.wait() for one in writers] == [0, 0]
    assert len(held(reader, 3500)) == 3500 and reader.damaged == 0
    assert len(list((tmp_path / WHO).iterdir())) == 2


def test_a_killed_writer_loses_at_most_its_last_batch(tmp_path):
    process = writer(tmp_path, 0, 0, 10_000_000)
    said = [int(process.stdout.readline()) for _ in range(50 + random.randrange(200))][-1]
    os.kill(process.pid, signal.SIGKILL)
    said = ([said] + [int(line) for line in process.communicate()[0].split("\n") if line])[-1]
    store = Store(tmp_path, WHO)
    assert len(held(store, said + 100)) >= said > 0
    assert store.damaged == 0, "what is cut off is no damage: it could be one that is being written"


# Where nothing can be written


def test_a_full_disk_is_told_once_and_the_rest_goes_on(tmp_path, capsys):
    """A file may not grow beyond 2000 bytes: the write fails in the middle of a batch."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        store = filled(tmp_path, 60)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "File too large" in lines[0] and str(tmp_path) in lines[0]
    kept = held(store, 60)
    assert kept == held(Store(tmp_path, WHO), 60) == list(range(len(kept))) and 5 <= len(kept) < 60
    assert not [entry for entry in entries(part(tmp_path), WHO) if entry.problem], "half a batch is taken back"


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").touch()
    store = filled(tmp_path / "file" / "store", 12)
    assert held(store, 12) == [] and store.problem
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_store_that_vanishes(tmp_path):
    filled(tmp_path, 5)
    store = Store(tmp_path, WHO)
    part(tmp_path).unlink()
    assert held(store, 5) == []


# Values


def test_float16_halves_the_space_and_is_what_the_first_use_sees(tmp_path):
    long = -np.random.default_rng(0).random(1000).astype(np.float32) * 9
    sizes = {}
    for dtype in ("float32", "float16"):
        store = Store(tmp_path / dtype, WHO, dtype=dtype)
        store.put({key(0): long})
        sizes[dtype] = part(tmp_path / dtype).stat().st_size
        assert np.array_equal(Store(tmp_path / dtype, WHO, dtype=dtype).get([key(0)])[0], store.rounded(long))
    assert sizes["float16"] < 0.55 * sizes["float32"]
    rounded = Store(tmp_path, WHO, dtype="float16").rounded(long)
    assert 0 < np.abs(rounded - long).max() < 0.005


def test_types_in_one_folder(tmp_path):
    """float16 is nothing to who asks for float32; float32 serves both, rounded."""
    Store(tmp_path, WHO, dtype="float16").put({key(1): values(4)})
    assert Store(tmp_path, WHO).get([key(1)]) == [None]
    store = Store(tmp_path, WHO)
    store.put({key(1): values(4), key(2): values(5)})
    assert np.array_equal(Store(tmp_path, WHO).get([key(1)])[0], values(4))
    short = Store(tmp_path, WHO, dtype="float16")
    assert np.array_equal(short.get([key(2)])[0], short.rounded(values(5)))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_no_number_is_not_kept(tmp_path, bad):
    store = Store(tmp_path, WHO)
    store.put({key(1): np.float32([-1, bad]), key(2): np.float32([-2])})
    assert Store(tmp_path, WHO).get([key(1)]) == [None]
    assert Store(tmp_path, WHO).get([key(2)])[0].tolist() == [-2.0]


# Keys


def row(prompt: tuple[int, ...], *responses: tuple[int, ...]) -> TokenizedRow:
    return TokenizedRow(prompt, tuple(TokenizedResponse(ids, 1) for ids in responses), None)


def test_keys_tell_tokens_mask_and_reference_apart():
    rows = [row((1, 2), (3, 4), (3,)), row((1,), (2, 3, 4)), row((1, 2, 3), (4,)), row((1, 2, 3, 4), (5,))]
    keys = [*response_keys(WHO, rows), *response_keys(OTHER, rows)]
    assert len(set(keys)) == len(keys) == 10 and {len(one) for one in keys} == {32}


def test_keys_do_not_depend_on_company_order_or_role():
    first, second = row((1, 2), (3, 4), (5,)), row((7,), (8,))
    both = response_keys(WHO, [first, second])
    assert response_keys(WHO, [second, first]) == [both[2], both[0], both[1]]
    negative = TokenizedRow((1, 2), (TokenizedResponse((3, 4), -1, weight=0.5, reward=2.0),), None, retain=True)
    assert response_keys(WHO, [negative]) == [both[0]]


def test_identity_is_weights_configuration_and_arithmetic():
    config = {"rope_theta": 1e4, "transformers_version": "5.1", "_name_or_path": "here", "use_cache": True}
    same = config | {"transformers_version": "5.2", "_name_or_path": "there", "use_cache": False}
    mine = identity("w1", config, "fp32")
    assert mine == identity("w1", dict(reversed(same.items())), "fp32") and len(mine) == 64
    others = {identity("w2", config, "fp32"), identity("w1", config, "bf16")}
    assert len({mine, *others, identity("w1", config | {"rope_theta": 1e5}, "fp32")}) == 4
