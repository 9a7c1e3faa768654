"""Sources read in parts: every row in one part, its true line, and going on from any position without reading again."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pytest

from align.data import sources
from align.data.examples import RowError
from align.data.readers import Lines, Piece, Place, cut, rows_in
from align.errors import UserError


def write(file: Path, count: int, seed: int = 0, ends: bool = True) -> Path:
    """Rows of very unequal length, numbered, with blank lines between some."""
    draw = random.Random(seed)
    lines = [json.dumps({"n": n, "text": "ä" * draw.choice((0, 3, 40, 900))}, ensure_ascii=False) for n in range(count)]
    text = "".join(line + "\n" * draw.choice((1, 1, 1, 3)) for line in lines)
    file.write_text(text if ends else text.rstrip("\n"), encoding="utf-8")
    return file


def in_order(file: Path) -> list[tuple[str, object]]:
    """(place, row) as a text editor numbers the lines."""
    lines = file.read_text(encoding="utf-8").split("\n")
    return [(f"{file}:{number}", json.loads(line)) for number, line in enumerate(lines, 1) if line.strip()]


def everything(opened: list) -> list[tuple[str, object]]:
    return [(str(place), row) for part in opened for place, row in part(None).rows()]


@pytest.mark.parametrize("count", [1, 2, 7, 16, 1000])
@pytest.mark.parametrize("ends", [True, False])
def test_a_file_cut_by_bytes_loses_no_row_and_no_line_number(tmp_path, count, ends):
    file = write(tmp_path / "my.jsonl", 60, ends=ends)
    assert everything(sources.parts(str(file), "train", count)) == in_order(file)


def test_several_files_are_cut_as_one(tmp_path):
    files = [write(tmp_path / f"{n}.jsonl", count, seed=n) for n, count in enumerate((5, 0, 200, 1, 30))]
    opened = sources.parts(f"{tmp_path}/*.jsonl", "train", 8)
    assert len(opened) == 8 and everything(opened) == [row for file in files for row in in_order(file)]
    sizes = [sum(len(str(row)) for _, row in part(None).rows()) for part in opened]
    mean = sum(sizes) / 8
    assert all(abs(size - mean) < 2500 for size in sizes), "parts differ by the length of a row"


@pytest.mark.parametrize("position", range(0, 400, 7))
def test_a_cut_at_every_byte(tmp_path, position):
    """Also within a character, at a line break and just behind one."""
    file = write(tmp_path / "my.jsonl", 9)
    size = file.stat().st_size
    position = min(position, size)
    pieces = [Piece(str(file), 0, position), Piece(str(file), position, size)]
    found = [(str(place), row) for piece in pieces for place, row in Lines([piece]).rows()]
    assert found == in_order(file)


def all_kinds(tmp_path: Path) -> dict[str, str]:
    """name -> path of a source of 50 rows in several files."""
    for n in range(3):
        rows = in_order(write(tmp_path / f"{n}.jsonl", 20 if n else 10, seed=n))
        with gzip.open(tmp_path / f"{n}.jsonl.gz", "wt", encoding="utf-8") as packed:
            packed.write("\n" + (tmp_path / f"{n}.jsonl").read_text(encoding="utf-8"))
        text = "n,text\n" + "".join(f"{row['n']},{row['text']}\n" for _, row in rows)
        (tmp_path / f"{n}.csv").write_text(text, encoding="utf-8")
        import pyarrow as pa
        from pyarrow import parquet

        table = pa.Table.from_pylist([row for _, row in rows])
        parquet.write_table(table, tmp_path / f"{n}.parquet", row_group_size=3)
    return {kind: f"{tmp_path}/*.{kind}" for kind in ("jsonl", "jsonl.gz", "csv", "parquet")}


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
@pytest.mark.parametrize("taken", [0, 1, 9, 10, 11, 25, 50])
def test_reading_goes_on_from_its_position(tmp_path, kind, taken):
    """Left after some rows, also at the border of two files, and gone on with in another process's shape: JSON."""
    path = all_kinds(tmp_path)[kind]
    for part in sources.parts(path, "train", 2):
        whole = [(str(place), row) for place, row in part(None).rows()]
        reader, first = part(None), []
        for found in reader.rows():
            first.append(found)
            if len(first) >= taken:
                break
        position = json.loads(json.dumps(reader.position if taken else part(None).position))
        first = first if taken else []
        rest = [(str(place), row) for place, row in part(position).rows()]
        assert [(str(place), row) for place, row in first] + rest == whole


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_parts_share_all_rows(tmp_path, kind):
    path = all_kinds(tmp_path)[kind]
    for count in (1, 2, 3, 5):
        opened = sources.parts(path, "train", count)
        assert len(opened) == (count if kind == "jsonl" else min(count, 3))
        rows = sorted(json.dumps(row, sort_keys=True) for _, row in everything(opened))
        assert len(rows) == 50 and rows == sorted(json.dumps(row, sort_keys=True) for _, row in sources.rows(path, ""))


def test_a_builtin_set_is_one_part():
    (part,) = sources.parts("builtin:pairs", "train", 16)
    reader = part(None)
    rows = reader.rows()
    first = [next(rows) for _ in range(5)]
    rest = list(part(json.loads(json.dumps(reader.position))).rows())
    assert [*first, *rest] == list(sources.rows("builtin:pairs", "train"))


def test_lines_in_front_are_counted_when_a_place_is_shown(tmp_path, monkeypatch):
    """A part in the middle of a large file must not read what is in front of it, until it has something to say."""
    file = write(tmp_path / "my.jsonl", 100)
    opened = []
    real = open
    monkeypatch.setattr("builtins.open", lambda *args, **more: opened.append(args[0]) or real(*args, **more))
    place, _ = next(sources.parts(str(file), "train", 2)[1](None).rows())
    assert isinstance(place, Place) and opened == [str(file)]
    number = int(str(place).rpartition(":")[2])
    assert len(opened) == 2 and 30 < number < 200


def test_lines_in_front_are_counted_once(tmp_path, monkeypatch):
    """The places of all parts, written out in any order, take one reading of the file and no more."""
    file = write(tmp_path / "my.jsonl", 300)
    places = [place for part in sources.parts(str(file), "", 16) for place, _ in part(None).rows()]
    monkeypatch.setattr("align.data.readers._BLOCK", 64)
    read, real = [], open

    class Counting:
        def __init__(self, data):
            self.data = data

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.data.close()

        def seek(self, *args):
            return self.data.seek(*args)

        def read(self, size):
            read.append(size)
            return self.data.read(size)

    with monkeypatch.context() as patched:
        patched.setattr("builtins.open", lambda *args, **more: Counting(real(*args, **more)))
        told = [str(place) for place in sorted(places)]
    assert told == [place for place, _ in in_order(file)]
    assert sum(read) <= file.stat().st_size


def test_a_damaged_line_in_the_middle_has_its_number(tmp_path):
    file = tmp_path / "my.jsonl"
    lines = [json.dumps({"n": n, "text": "x" * 50}) for n in range(100)]
    lines[70] = lines[70][:20]
    lines[80] = "\udcff".join((lines[80][:5], ""))
    file.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    broken = [
        (place, str(row)) for place, row in everything(sources.parts(str(file), "", 8)) if isinstance(row, RowError)
    ]
    assert broken == [
        (f"{file}:71", "is not valid JSON at column 19"), (f"{file}:81", "is not UTF-8 text")
    ]  # fmt: skip


def test_a_corrupt_archive_says_where_and_can_be_passed_over(tmp_path):
    for n in range(2):
        text = "".join(json.dumps({"n": n * 1000 + i, "x": random.Random(i).random()}) + "\n" for i in range(1000))
        (tmp_path / f"{n}.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    first = tmp_path / "0.jsonl.gz"
    first.write_bytes(first.read_bytes()[:-4000])
    (part,) = sources.parts(f"{tmp_path}/*.gz", "", 1)
    reader, numbers = part(None), []
    with pytest.raises(UserError) as error:
        for _, row in reader.rows():
            numbers.append(row["n"])
    assert (
        str(error.value).startswith(f"{first}:{len(numbers)}: cannot be read to its end: ")
        and 100 < len(numbers) < 1000
    )
    reader.next_piece()
    assert [row["n"] for _, row in reader.rows()] == list(range(1000, 2000))


def test_a_table_that_breaks_is_named_and_can_be_passed_over(tmp_path, capfd):
    """Three files in one part: the rows of the first and the third come, the second is named."""
    all_kinds(tmp_path)
    second = tmp_path / "1.parquet"
    second.write_bytes(second.read_bytes()[:-40])
    (part,) = sources.parts(f"{tmp_path}/*.parquet", "", 1)
    reader, found = part(None), []
    with pytest.raises(UserError, match=rf"^{second}: cannot be read: .*; check the file$"):
        for place, _ in reader.rows():
            found.append(str(place))
    assert found == [f"{tmp_path}/0.parquet:row {n}" for n in range(1, 11)]
    assert not capfd.readouterr().err, "the library has not said it, too"
    reader.next_piece()
    assert [str(place) for place, _ in reader.rows()] == [f"{tmp_path}/2.parquet:row {n}" for n in range(1, 21)]


@pytest.mark.parametrize("count", [1, 4])
def test_a_file_that_shrinks_while_it_is_read(tmp_path, count):
    """Each part whose rows are gone says so; none ends as if there had been no more."""
    file = write(tmp_path / "my.jsonl", 400)
    readers = [part(None) for part in sources.parts(str(file), "", count)]
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[: size // 3])
    said = []
    for reader in readers:
        try:
            list(reader.rows())
        except UserError as error:
            said.append(str(error))
    assert len(said) == (1 if count == 1 else 3)
    assert all(
        f"{file}: ends at byte {size // 3:,}; " in one and one.endswith("; put the whole file back") for one in said
    )


def test_a_file_that_vanishes(tmp_path):
    files = [write(tmp_path / f"{n}.jsonl", 5) for n in range(2)]
    (part,) = sources.parts(f"{tmp_path}/*.jsonl", "", 1)
    reader = part(None)
    rows = reader.rows()
    assert [next(rows)[1]["n"] for _ in range(5)] == list(range(5))
    files[1].unlink()
    with pytest.raises(UserError, match=r"1\.jsonl: cannot be read to its end: No such file"):
        next(rows)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "parquet"])
def test_sizes_are_told_without_reading_all(tmp_path, kind):
    """Exact where the format counts, from the bytes of the first rows elsewhere; small files are read whole."""
    path = all_kinds(tmp_path)[kind]
    blanks = sum(file.read_text(encoding="utf-8").count("\n\n") for file in tmp_path.glob("*.jsonl"))
    assert 50 <= sources.size(path, "train") <= 50 + 2 * blanks + 3
    assert sources.size("builtin:pairs", "train") == len(list(sources.rows("builtin:pairs", "train")))


def test_the_size_of_a_large_file_is_estimated(tmp_path, monkeypatch):
    monkeypatch.setattr("align.data.readers._BLOCK", 10_000)
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps({"n": n, "x": "y" * (n % 7)}) + "\n" for n in range(5000)))
    assert rows_in([file]) == pytest.approx(5000, rel=0.15)
    (tmp_path / "my.json").write_text("[]")
    assert sources.size(f"{tmp_path}/my.json", "train") is None


def test_the_size_of_many_files_is_told_by_some(tmp_path, monkeypatch):
    """A thousand shards must not be opened for it; eight of them tell, wherever the long rows are."""
    for n in range(40):
        write(tmp_path / f"{n:02}.jsonl", 30, seed=n)
    opened, real = [], open
    monkeypatch.setattr("builtins.open", lambda *args, **more: opened.append(args[0]) or real(*args, **more))
    assert sources.size(f"{tmp_path}/*.jsonl", "train") == pytest.approx(40 * 30 * 1.5, rel=0.25)  # with blank lines
    assert len(opened) == 8


def test_pieces_of_archives_are_whole_and_balanced(tmp_path):
    for n, size in enumerate((100, 10, 50, 60)):
        (tmp_path / f"{n}.jsonl.gz").write_bytes(bytes(size))
    parts = cut(sorted(tmp_path.glob("*.gz")), 2)
    assert [[Path(piece.file).name[0] for piece in part] for part in parts] == [["0"], ["1", "2", "3"]]
