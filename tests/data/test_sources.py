"""Rows come in with their place, broken ones stop or are counted, and the builtin sets keep their promises."""

from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

from align.data import sources
from align.data.examples import Example, parse_row
from align.data.ledger import Ledger
from align.data.sources import HELD_OUT, check, split_holdout
from align.errors import UserError, UserErrors, shorten

GOOD = {"prompt": "Say hello.", "negatives": ["No."]}
NO_JSON = '{"prompt": Hi}'
NO_RESPONSE = json.dumps({"prompt": "Hi", "negatives": []})
SKIP_NOTE = "mend them, or use the good rows with data.on_bad_rows: skip"


def write(file: Path, *rows: object) -> Path:
    """A file of lines; what is not text already is written as JSON."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return file


def read(path: Path | str, split: str = "train", on_bad_rows: str = "stop", ledger: Ledger | None = None):
    return sources.read(str(path), split, on_bad_rows=on_bad_rows, ledger=ledger or Ledger())


def places(examples: list[Example]) -> list[str]:
    return [example.place for example in examples]


def prompts(examples: list[Example]) -> list:
    return [example.prompt for example in examples]


def numbered(count: int) -> list[dict]:
    return [{"prompt": f"Prompt {number}", "negatives": ["No."]} for number in range(count)]


# JSONL


def test_place_is_file_and_line_blank_lines_counted(tmp_path):
    file = write(tmp_path / "my.jsonl", GOOD, "", "  ", GOOD)
    ledger = Ledger()
    examples = read(file, ledger=ledger)
    assert places(examples) == [f"{file}:1", f"{file}:4"]
    assert (ledger.read, ledger.dropped) == (2, {})
    assert {example.source for example in examples} == {str(file)}


def test_byte_order_mark_carriage_returns_and_missing_last_newline(tmp_path):
    file = tmp_path / "windows.jsonl"
    line = json.dumps({"prompt": "Grüß dich", "negatives": ["Nein."]}, ensure_ascii=False).encode()
    file.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n" + line)
    assert prompts(read(file)) == ["Grüß dich"] * 2


def test_line_separators_inside_a_text_end_no_line(tmp_path):
    prompt = "one\u2028two\x85three"
    file = write(tmp_path / "my.jsonl", json.dumps({"prompt": prompt, "negatives": ["No."]}, ensure_ascii=False))
    assert prompts(read(file)) == [prompt]


def test_gzip(tmp_path):
    file = tmp_path / "my.jsonl.gz"
    file.write_bytes(gzip.compress(f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}\n".encode()))
    assert places(read(file)) == [f"{file}:1", f"{file}:3"]


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"x" + data], ids=["cut-off", "no-gzip"])
def test_damaged_gzip(tmp_path, damage):
    file = tmp_path / "my.jsonl.gz"
    file.write_bytes(damage(gzip.compress(f"{json.dumps(GOOD)}\n".encode())))
    with pytest.raises(UserError) as error:
        read(file)
    said = str(error.value)
    assert said.startswith(f"{file}: cannot be read to its end: ") and said.endswith("; copy the file again")
    assert "\n" not in said


def test_zstd(tmp_path):
    file = tmp_path / "my.jsonl.zst"
    assert check(str(file), "train")[0].endswith("no such file")  # a local name, not a hub id
    packed = zstd.compress(f"{json.dumps(GOOD)}\n\n{json.dumps(GOOD)}\n".encode())
    file.write_bytes(packed)
    assert places(read(file)) == [f"{file}:1", f"{file}:3"]
    file.write_bytes(packed[:-5])
    with pytest.raises(UserError, match=r"my\.jsonl\.zst(:\d+)?: cannot be read to its end: .*; copy the file again"):
        read(file)


def test_gzip_damaged_in_the_middle(tmp_path):
    packed = bytearray(gzip.compress(f"{json.dumps(GOOD)}\n".encode()))
    packed[10] = 0xFF  # a block of a kind that does not exist
    file = tmp_path / "my.jsonl.gz"
    file.write_bytes(packed)
    with pytest.raises(UserError, match="cannot be read to its end"):
        read(file)


# Broken rows


def test_broken_rows_stop_with_their_places(tmp_path):
    file = write(tmp_path / "my.jsonl", GOOD, NO_JSON, "[1]", GOOD, NO_RESPONSE)
    with pytest.raises(UserErrors) as error:
        read(file)
    assert str(error.value).split("\n") == [
        f"{file}:2: is not valid JSON at column 12",
        f"{file}:3: is a list, not an object with a prompt and responses",
        f"{file}:5: has no response",
        f"3 broken rows; {SKIP_NOTE}",
    ]


def test_at_most_ten_broken_rows_are_listed(tmp_path):
    file = write(tmp_path / "my.jsonl", GOOD, *["{x"] * 12)
    with pytest.raises(UserErrors) as error:
        read(file)
    listed = [f"{file}:{line}: is not valid JSON at column 2" for line in range(2, 12)]
    assert str(error.value).split("\n") == [*listed, f"12 broken rows, the first 10 shown; {SKIP_NOTE}"]


def test_ten_broken_rows_are_all_listed(tmp_path):
    with pytest.raises(UserErrors) as error:
        read(write(tmp_path / "my.jsonl", *["null"] * 10))
    lines = str(error.value).split("\n")
    assert len(lines) == 11 and lines[-1] == f"10 broken rows; {SKIP_NOTE}"


def test_one_broken_row_is_one(tmp_path):
    with pytest.raises(UserErrors) as error:
        read(write(tmp_path / "my.jsonl", GOOD, "null"))
    assert str(error.value).split("\n")[1] == f"1 broken row; {SKIP_NOTE.replace('them', 'it')}"


def test_a_long_error_is_cut(tmp_path):
    file = write(tmp_path / "my.jsonl", {"x" * 500: 1})
    with pytest.raises(UserErrors) as error:
        read(file)
    line = str(error.value).split("\n")[0]
    assert line.startswith(f"{file}:1: has no responses: give ") and line.endswith("...")
    assert len(line) == len(f"{file}:1: ") + 200


def test_broken_rows_skipped_are_counted(tmp_path):
    file, ledger = write(tmp_path / "my.jsonl", NO_JSON, GOOD, "null", NO_RESPONSE, GOOD), Ledger()
    assert places(read(file, on_bad_rows="skip", ledger=ledger)) == [f"{file}:2", f"{file}:5"]
    assert ledger.as_dict() == {
        "rows_read": 5,
        "rows_used": 0,
        "dropped": {
            "broken": {
                "count": 3,
                "first": [
                    f"{file}:1: is not valid JSON at column 12",
                    f"{file}:3: is null, not an object with a prompt and responses",
                    f"{file}:4: has no response",
                ],
            }
        },
    }


def test_ledger_counts_all_and_keeps_ten_places(tmp_path):
    file, ledger = write(tmp_path / "my.jsonl", *["{"] * 25, GOOD), Ledger()
    read(file, on_bad_rows="skip", ledger=ledger)
    assert (ledger.read, ledger.dropped["broken"], len(ledger.places["broken"])) == (26, 25, 10)


def test_one_ledger_counts_over_all_sources(tmp_path):
    ledger = Ledger()
    for name in ("a.jsonl", "b.jsonl"):
        read(write(tmp_path / name, GOOD, "{"), on_bad_rows="skip", ledger=ledger)
    assert (ledger.read, ledger.dropped) == (4, {"broken": 2})


@pytest.mark.parametrize(
    "line, text",
    [
        (b'{"prompt": "caf\xe9", "negatives": ["No."]}', "is not UTF-8 text"),
        (b"[" * 100_000, "is not valid JSON"),  # nested too deeply for the parser
        (b"\x00\x00", "is not valid JSON at column 1"),
    ],
    ids=["latin-1", "deep", "nul"],
)
def test_lines_that_are_no_json_text(tmp_path, line, text):
    file = tmp_path / "my.jsonl"
    file.write_bytes(json.dumps(GOOD).encode() + b"\n" + line + b"\n")
    with pytest.raises(UserErrors) as error:
        read(file)
    assert str(error.value).split("\n")[0] == f"{file}:2: {text}"


def test_a_row_cut_off_is_broken_at_its_end(tmp_path):
    """Not at column 1, the place behind the line break that the row is read with."""
    line = '{"prompt": "Hi", "negatives": ['
    with pytest.raises(UserErrors) as error:
        read(write(tmp_path / "my.jsonl", line))
    column = str(error.value).split("\n")[0].rpartition("is not valid JSON at column ")[2]
    assert int(column) >= len(line)


def test_a_number_with_too_many_digits_breaks_its_row_only(tmp_path):
    """Python refuses to read integers of more than 4300 digits."""
    file, ledger = write(tmp_path / "my.jsonl", GOOD, json.dumps(GOOD)[:-1] + ', "id": 1' + "0" * 5000 + "}"), Ledger()
    assert places(read(file, on_bad_rows="skip", ledger=ledger)) == [f"{file}:1"]
    assert ledger.dropped == {"broken": 1}


def test_half_a_character_never_gets_through(tmp_path):
    """JSON may hold one half of a surrogate pair (an emoji cut in two); no tokenizer and no file takes that."""
    half = '{"prompt": "Hi", "negatives": ["\\ud83d"]}'
    file, ledger = write(tmp_path / "my.jsonl", GOOD, half), Ledger()
    examples = read(file, on_bad_rows="skip", ledger=ledger)
    assert ledger.read == 2 == len(examples) + ledger.dropped["broken"]
    assert ledger.places["broken"] == [f"{file}:2: 'negatives[0]' is not valid Unicode text"]
    for example in examples:
        assert [text.encode("utf-8") for text in example.texts("negative")]


# Nothing there


@pytest.mark.parametrize("content", ["", "\n \n"], ids=["empty", "blank"])
def test_empty_file(tmp_path, content):
    file = tmp_path / "my.jsonl"
    file.write_text(content)
    with pytest.raises(UserError) as error:
        read(file)
    assert str(error.value) == f"{file}: holds no usable row; a row is an object with a prompt and responses"


def test_no_good_row_left_after_skipping(tmp_path):
    ledger = Ledger()
    with pytest.raises(UserError, match="holds no usable row"):
        read(write(tmp_path / "my.jsonl", "{", "null"), on_bad_rows="skip", ledger=ledger)
    assert (ledger.read, ledger.dropped) == (2, {"broken": 2})


NOT_THERE = "give an existing file, a glob, a hub id or builtin:unwanted"


@pytest.mark.parametrize("name", ["absent.jsonl", "absent.csv", "absent-*.jsonl", "absent/folder/"])
def test_missing_file(tmp_path, name):
    path = f"{tmp_path}/{name}"
    what, fix = check(path, "train")
    assert what.endswith(": no such file") and fix == NOT_THERE
    with pytest.raises(UserError):
        read(path)


def test_missing_file_is_named_in_full():
    assert check("absent.jsonl", "train") == ("absent.jsonl: no such file", NOT_THERE)


@pytest.mark.parametrize(
    "path, local",
    [
        ("my.jsonl", True),
        ("owner/my.jsonl", True),
        ("data/*.parquet", True),
        ("./owner/name", True),
        ("~/name", True),
        ("/owner/name", True),
        ("a/b/c", True),
        ("name", True),
        ("owner/name", False),
        ("builtin:unwanted", False),
    ],
)
def test_local_files_and_hub_ids(path, local, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # nothing of these names is here
    assert sources.is_local(path) is local


def test_a_folder_and_a_file_of_no_known_kind(tmp_path):
    (tmp_path / "rows.txt").write_text("hello")
    assert check(str(tmp_path), "train") == (
        f"{shorten(str(tmp_path))} is a folder", f"name the files in it: {shorten(str(tmp_path))}/*.jsonl, for example"
    )  # fmt: skip
    what, fix = check(f"{tmp_path}/*", "train")
    assert what.endswith("is of no kind that can be read") and fix == f"give {', '.join(sources._LOCAL)}"


def test_a_file_that_exists_goes_before_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner" / "name").touch()
    assert sources.is_local("owner/name") and check("owner/name", "train")[0].startswith("owner/name is of no kind")


def test_rows_without_a_prompt_are_on_both_sides_of_the_hold_out():
    examples = [parse_row({"prompt": "", "negatives": [f"No {n}."]}, source="s", place="p") for n in range(400)]
    train, aside = split_holdout(examples, 0.25)
    assert 60 < len(aside) < 140 and len(train) + len(aside) == 400
    assert split_holdout(examples[::-1], 0.25)[1] == aside[::-1]


# Several files


def test_glob_reads_files_in_the_order_of_their_names(tmp_path):
    second, first = write(tmp_path / "b.jsonl", GOOD), write(tmp_path / "a.jsonl", GOOD, GOOD)
    write(tmp_path / "c.txt", "not rows")
    pattern = f"{tmp_path}/*.jsonl"
    assert check(pattern, "train") is None
    examples = read(pattern)
    assert places(examples) == [f"{first}:1", f"{first}:2", f"{second}:1"]
    assert {example.source for example in examples} == {pattern}


def test_glob_over_folders_and_formats(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    plain = write(tmp_path / "deep" / "a.jsonl", GOOD)
    packed = tmp_path / "deep" / "er" / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert places(read(f"{tmp_path}/**/*.jsonl*")) == [f"{plain}:1", f"{packed}:1"]


def test_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    file = write(tmp_path / "my.jsonl", GOOD)
    assert places(read("~/my.jsonl")) == [f"{file}:1"]


def test_a_file_with_brackets_in_its_name_is_that_file(tmp_path):
    file = write(tmp_path / "rows [1].jsonl", GOOD)
    assert check(str(file), "train") is None
    assert places(read(file)) == [f"{file}:1"]


# CSV, Parquet and JSON, read by `datasets`


def test_csv(tmp_path):
    file = tmp_path / "my.csv"
    file.write_text('prompt,chosen,rejected\n"Say hello, please.",Hello.,Go.\nHi,"Two\nlines",No.\n')
    examples = read(file)
    assert places(examples) == [f"{file}:row 1", f"{file}:row 2"]
    assert prompts(examples) == ["Say hello, please.", "Hi"]
    assert [example.texts("positive") for example in examples] == [["Hello."], ["Two\nlines"]]
    assert [example.texts("negative") for example in examples] == [["Go."], ["No."]]


@pytest.mark.parametrize("good, bad", [("True", "False"), ("1", "0"), ("true", "false")])
def test_csv_with_labels(tmp_path, good, bad):
    file = tmp_path / "my.csv"
    file.write_text(f"prompt,completion,label\nHi,Hello.,{good}\nHi,Go.,{bad}\n")
    assert [response.role for example in read(file) for response in example.responses] == ["positive", "negative"]


def test_csv_cell_left_empty_is_a_broken_row(tmp_path):
    file = tmp_path / "my.csv"
    file.write_text("prompt,chosen,rejected\nHi,Hello.,Go.\nHi,Hello.,\n")
    with pytest.raises(UserErrors) as error:
        read(file)
    assert str(error.value).split("\n")[0] == f"{file}:row 2: 'rejected' is missing"


PARQUET_ROWS = [
    {"prompt": [{"role": "user", "content": "Hi"}], "positives": ["Hello."], "negatives": ["Go.", "No."]},
    {"prompt": [{"role": "user", "content": "Bye"}], "positives": None, "negatives": ["Stay."]},
]


def test_parquet(tmp_path):
    import pyarrow
    import pyarrow.parquet

    file = tmp_path / "my.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(PARQUET_ROWS), file)
    examples = read(file)
    assert places(examples) == [f"{file}:row 1", f"{file}:row 2"]
    assert prompts(examples) == [(("user", "Hi"),), (("user", "Bye"),)]
    assert [example.texts("negative") for example in examples] == [["Go.", "No."], ["Stay."]]
    assert [example.texts("positive") for example in examples] == [["Hello."], []]


def test_json_array(tmp_path):
    file = tmp_path / "my.json"
    file.write_text(json.dumps(numbered(2)))
    assert prompts(read(file)) == ["Prompt 0", "Prompt 1"]


def test_a_file_that_is_not_what_its_name_says(tmp_path):
    file = tmp_path / "my.parquet"
    file.write_text("no parquet\x1b[31m")
    with pytest.raises(UserError) as error:
        read(file)
    said = str(error.value)
    assert said.startswith(f"{file}: cannot be read: ") and said.endswith("; check the file")
    assert said.isprintable()


def test_hub_id_without_network():
    with pytest.raises(UserError) as error:
        read("nobody/nothing")
    said = str(error.value)
    assert said.startswith("nobody/nothing: cannot be read: ")
    assert said.endswith("; check the name, the split and the network") and said.isprintable()


# Builtin sets


def builtin(name: str, split: str = "train") -> list[Example]:
    return read(f"builtin:{name}", split)


def words(example: Example) -> str:
    """The prompt in lower case without punctuation: near-copies fall together."""
    return " ".join("".join(c if c.isalnum() else " " for c in example.prompt[0][1].lower()).split())


def test_builtin_names():
    assert {"benign", "pairs", "unwanted"} <= set(sources.builtin_names())


def test_check_of_builtin_names():
    assert check("builtin:unwanted", "train") is None and check("builtin:pairs", HELD_OUT) is None
    assert check("builtin:unwantd", "train") == ("there is no 'builtin:unwantd'", "did you mean 'unwanted'?")
    wrong_split = ("builtin:pairs has no split 'test'", "it has train and heldout")
    assert check("builtin:pairs", "test") == wrong_split


def test_check_says_that_benign_has_no_training_part():
    """It is never trained on, and that can be told without reading it."""
    assert check("builtin:benign", HELD_OUT) is None
    assert check("builtin:benign", "train") == ("builtin:benign has no split 'train'", "it has heldout")


def test_check_says_that_retain_has_no_held_out_part():
    assert check("builtin:retain", "train") is None
    assert check("builtin:retain", HELD_OUT) == ("builtin:retain has no split 'heldout'", "it has train")


def test_builtin_place_names_the_line_of_the_file():
    examples = builtin("unwanted") + builtin("unwanted", HELD_OUT)
    lines = [int(example.place.removeprefix("builtin:unwanted:")) for example in examples]
    assert sorted(lines) == list(range(1, len(lines) + 1))


def test_unwanted_has_at_least_300_prompts_no_two_alike():
    names = [words(example) for example in builtin("unwanted") + builtin("unwanted", HELD_OUT)]
    assert len(names) >= 300 and len(set(names)) == len(names)


@pytest.mark.parametrize("name", ["unwanted", "pairs"])
def test_train_and_held_out_share_no_prompt(name):
    train, held_out = builtin(name), builtin(name, HELD_OUT)
    assert train and held_out
    assert not {words(example) for example in train} & {words(example) for example in held_out}
    assert not {example.key for example in train} & {example.key for example in held_out}


def test_unwanted_trains_on_negatives_alone_and_pairs_on_both():
    unwanted, pairs = builtin("unwanted"), builtin("pairs")
    assert prompts(unwanted) == prompts(pairs)
    assert all(example.texts("positive") == [] and example.texts("negative") for example in unwanted)
    assert all(len(example.texts("positive")) == 1 for example in pairs)
    assert [example.texts("negative") for example in unwanted] == [example.texts("negative") for example in pairs]


@pytest.mark.parametrize("name", ["unwanted", "pairs"])
def test_every_held_out_row_has_a_good_answer_of_similar_length(name):
    """Else a policy that only learned to answer longer, or shorter, would look as if it had unlearned the fault."""
    ratios = []
    for example in builtin(name, HELD_OUT):
        (good,), bad = example.texts("positive"), example.texts("negative")
        ratios.append(len(good) * len(bad) / sum(map(len, bad)))
    assert len(ratios) >= 50
    assert 0.5 < min(ratios) and max(ratios) < 2
    assert 0.9 < sum(ratios) / len(ratios) < 1.1


def test_benign_is_good_answers_on_other_prompts():
    benign = builtin("benign", HELD_OUT)
    unwanted = {words(example) for example in builtin("unwanted") + builtin("unwanted", HELD_OUT)}
    assert len(benign) >= 150
    assert len({words(example) for example in benign} - unwanted) == len(benign)
    assert all(example.texts("positive") and not example.texts("negative") for example in benign)


@pytest.mark.parametrize("name, split", [("unwanted", "train"), ("pairs", HELD_OUT), ("benign", HELD_OUT)])
def test_builtin_prompts_are_one_user_message_and_name_their_kind(name, split):
    for example in builtin(name, split):
        assert [role for role, _ in example.prompt] == ["user"]
        assert example.source and not example.source.startswith("builtin:")


# Held-out part of a file


@pytest.fixture(scope="module")
def two_thousand(tmp_path_factory) -> list[Example]:
    return read(write(tmp_path_factory.mktemp("data") / "my.jsonl", *numbered(2000)))


def test_split_holdout_parts_are_the_whole_in_order(two_thousand):
    train, held_out = split_holdout(two_thousand, 0.1)
    assert 150 < len(held_out) < 250
    assert sorted(train + held_out, key=two_thousand.index) == two_thousand
    assert train == [example for example in two_thousand if example not in held_out]


def test_split_holdout_is_stable_under_reordering_and_in_other_files(two_thousand, tmp_path):
    expected = set(prompts(split_holdout(two_thousand, 0.1)[1]))
    shuffled = numbered(2000)
    random.Random(0).shuffle(shuffled)
    other = read(write(tmp_path / "other.jsonl", *shuffled[:1000]))
    _, held_out = split_holdout(other, 0.1)
    assert set(prompts(held_out)) == expected & set(prompts(other))


def test_rows_of_one_prompt_stay_together(two_thousand):
    train, held_out = split_holdout([*two_thousand, *reversed(two_thousand)], 0.3)
    assert not set(prompts(train)) & set(prompts(held_out))


def test_a_larger_share_holds_out_more_of_the_same(two_thousand):
    shares = [set(prompts(split_holdout(two_thousand, share)[1])) for share in (0, 0.1, 0.2, 0.99)]
    assert shares[0] == set() and shares[0] < shares[1] < shares[2] < shares[3]


# Terminal escapes in data

RED, CSI, BIDI = "\x1b[31m", "\x9b31m", "\u202e"
HOSTILE = f"a{RED}b{CSI}c{BIDI}d\r\x07"


@pytest.mark.parametrize(
    "row",
    [
        {HOSTILE: "x"},
        {"prompt": HOSTILE, "negatives": []},
        {"prompt": "Hi", "completion": "x", "label": HOSTILE},
        {"prompt": "Hi", "responses": [{"text": "x", "role": HOSTILE}]},
        {"prompt": "Hi", "responses": [{"text": "x", "role": "negative", "reward": HOSTILE}]},
        {"prompt": [{"role": HOSTILE, "content": ""}], "negatives": ["x"]},
    ],
    ids=["key", "prompt", "label", "role", "reward", "message-role"],
)
@pytest.mark.parametrize("ensure_ascii", [True, False])
def test_escapes_in_rows_reach_no_message_raw(tmp_path, row, ensure_ascii):
    file, ledger = write(tmp_path / "my.jsonl", GOOD, json.dumps(row, ensure_ascii=ensure_ascii)), Ledger()
    with pytest.raises(UserErrors) as error:
        read(file)
    lines = str(error.value).split("\n")
    assert len(lines) == 2 and all(line.isprintable() for line in lines)
    read(file, on_bad_rows="skip", ledger=ledger)
    assert len(ledger.places["broken"]) == 1 and ledger.places["broken"][0].isprintable()


def test_escapes_are_shown_as_escapes(tmp_path):
    with pytest.raises(UserErrors) as error:
        read(write(tmp_path / "my.jsonl", {f"a{RED}b": 1}))
    assert str(error.value).split("\n")[0].endswith("its keys are a\\x1b[31mb")


def test_escapes_in_lines_that_are_no_json(tmp_path):
    with pytest.raises(UserErrors) as error:
        read(write(tmp_path / "my.jsonl", f'{{"prompt": {HOSTILE}'.replace("\r", "")))
    assert all(line.isprintable() for line in str(error.value).split("\n"))


def test_escapes_in_names_of_files(tmp_path):
    write(tmp_path / f"a{RED}{BIDI}.jsonl", "{")
    with pytest.raises(UserErrors) as error:
        read(f"{tmp_path}/*.jsonl")
    assert all(line.isprintable() for line in str(error.value).split("\n"))
    what, _ = check(f"{tmp_path}/b{RED}.jsonl", "train")
    assert what.isprintable()
