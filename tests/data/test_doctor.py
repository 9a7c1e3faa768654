"""`align doctor`: every planted fault at its place, nothing on clean rows, and a repaired set that is clean."""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from align.cli import run
from align.data import doctor
from align.data.doctor import examine
from align.data.doctor_checks import CHECKS, ends_well, is_broken, mended, refuses, stripped
from align.data.examples import parse_row, to_row
from align.doctor_command import table
from align.errors import UserError
from tests import tiny

TOKENIZER = tiny.tokenizer()
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def clean(count: int = 80) -> list[dict]:
    """Rows of varied answers, of like length in both roles."""
    draw = random.Random(0)
    nouns = "river house bird stone garden letter window market teacher ship engine forest bridge lamp coat".split()
    verbs = "carries holds finds repairs paints leaves follows watches opens sells".split()

    def sentence() -> str:
        words = [draw.choice(nouns), draw.choice(verbs), "the", draw.choice(nouns), "near", "a", draw.choice(nouns)]
        return " ".join(words[: draw.randint(4, 7)]).capitalize() + "."

    return [
        {"prompt": f"Question {n}: what {draw.choice(verbs)} the {draw.choice(nouns)} of {draw.choice(nouns)} {n}?",
         "positives": [f"{sentence()} {sentence()}"], "negatives": [f"{sentence()} {sentence()}"]}
        for n in range(count)
    ]  # fmt: skip


def write(file: Path, rows: list) -> str:
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(file)


def found(rows: list, tmp_path: Path, **options) -> doctor.Report:
    return examine(
        [(write(tmp_path / "my.jsonl", rows), "train")], **{"tokenizer": TOKENIZER, "max_length": 400} | options
    )


def test_clean_rows_have_nothing(tmp_path):
    report = found(clean(), tmp_path)
    assert not report.counts and report.rows == 80 and report.responses == {"positive": 80, "negative": 80}
    assert 0.4 < report.lengths["auc"] < 0.6


def with_row(change: Callable[[dict], object]) -> Callable[[list], list]:
    """Row 41 changed."""
    return lambda rows: [*rows[:40], change(rows[40]) or rows[40], *rows[41:]]


def copied(row: dict) -> None:
    row["negatives"] = list(row["positives"])


PLANTED = {
    "broken row": with_row(lambda row: '{"prompt": "cut off'),
    "identical positive and negative": with_row(copied),
    "alike positive and negative": with_row(lambda row: row.update(negatives=[row["positives"][0].upper()])),
    "duplicate row": lambda rows: [*rows[:40], rows[7], *rows[40:]],
    "repeated prompt": lambda rows: [*rows[:40], rows[7] | {"negatives": ["Nobody does that."]}, *rows[40:]],
    "same text under both roles": lambda rows: [
        *rows[:40], {"prompt": rows[7]["prompt"], "negatives": rows[7]["positives"]}, *rows[40:]
    ],
    "special token in a text": with_row(lambda row: row.update(negatives=[f"One {tiny.START} two."])),
    "double EOS": with_row(lambda row: row.update(negatives=[f"It is so.{tiny.END}"])),
    "no room for a response": with_row(lambda row: row.update(prompt="long " * 100)),
    "truncated response": with_row(lambda row: row.update(negatives=["And so on. " * 60])),
    "identical after truncation": with_row(
        lambda row: row.update(positives=["and so on " * 60 + "yes."], negatives=["and so on " * 60 + "no."])
    ),
    "broken encoding": with_row(lambda row: row.update(positives=["The caf\u00c3\u00a9 is open."])),
    "ends in mid-sentence": with_row(lambda row: row.update(positives=["The river carries the and then the"])),
    "too-short negative": with_row(lambda row: row.update(positives=["one " * 11 + "end."], negatives=["No."])),
}  # fmt: skip


@pytest.mark.parametrize("check", PLANTED)
def test_a_planted_fault_is_found_at_its_place(check, tmp_path):
    rows = PLANTED[check]([dict(row) for row in clean()])
    report = found(rows, tmp_path)
    lines = [place.split(":")[1].split(" ")[0] for place in report.places[check]]
    both = {"repeated prompt": ["8", "41"], "same text under both roles": ["8", "41"]}
    assert lines == both.get(check, ["41"]), report.as_dict()["findings"]
    along = {"same text under both roles": {"repeated prompt"}, "identical after truncation": {"truncated response"},
             "duplicate row": {"repeated prompt"}}.get(check, set())  # fmt: skip
    assert set(report.counts) <= {check} | along, "and nothing else"
    assert report.has_faults == (CHECKS[check].severity == "fault" or bool(along & {"identical after truncation"}))


def test_faults_of_whole_sets(tmp_path):
    rows = clean()
    for index, row in enumerate(rows):
        row["positives"] = [f"As far as I know it {row['positives'][0]} {row['positives'][0]} {index}."]
        if index % 5 == 0:
            row["negatives"] = [f"I'm sorry, but I can't say {index}."]
    report = found(rows, tmp_path)
    assert {"length bias", "boilerplate", "refusals"} <= set(report.counts)
    assert report.details["refusals"] == "20% of the negatives"
    assert report.details["boilerplate"] == "100% of the positives begin 'as far as i know'"
    assert report.details["length bias"].startswith("a positive is the longer one with probability 1.00; medians ")


def test_one_class_source(tmp_path):
    report = found([{"prompt": row["prompt"], "negatives": row["negatives"]} for row in clean()], tmp_path)
    assert set(report.counts) == {"one-class source"} and "negative only" in report.details["one-class source"]
    assert not report.has_faults


def test_template_without_an_end(tmp_path):
    bare = (
        "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    report = found(clean(), tmp_path, tokenizer=tiny.tokenizer(bare))
    assert report.counts == {"missing EOS": 80} and report.places["missing EOS"][0].endswith("my.jsonl:1")


@pytest.mark.parametrize(("begin", "check"), [("", "missing BOS"), ("<s>", None), ("<s><s>", "double BOS")])
def test_template_and_tokenizer_about_the_begin(begin, check, tmp_path):
    tokenizer = tiny.tokenizer(begin + tiny.CHATML)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    number = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", number)])
    assert found(clean(), tmp_path, tokenizer=tokenizer).counts == ({check: 80} if check else {})


def calling(name: str, city: str) -> dict:
    call = {"type": "function", "function": {"name": name, "arguments": {"city": city}}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_answers_that_only_call_a_tool_are_told_apart(tmp_path):
    """They have no text: what they call says whether they are the same."""
    rows = [
        {"prompt": [{"role": "user", "content": f"What is the weather in {city}?"}],
         "chosen": [calling("weather", city)], "rejected": [calling("weather", "Nowhere")]}
        for city in ("Rome", "Oslo", "Lima", "Bern")
    ]  # fmt: skip
    same = {"prompt": rows[0]["prompt"][:1], "chosen": rows[0]["rejected"], "rejected": rows[0]["rejected"]}
    kept = []
    report = found([*rows, same | {"prompt": [{"role": "user", "content": "And here?"}]}], tmp_path, tokenizer=None,
                   fix=kept.append)  # fmt: skip
    assert report.counts == {"identical positive and negative": 1}
    assert report.places["identical positive and negative"] == [f"{tmp_path}/my.jsonl:5"]
    assert [len(example.responses) for example in kept] == [2, 2, 2, 2]
    assert kept[0] == parse_row(rows[0], source=str(tmp_path / "my.jsonl"), place=kept[0].place)


def test_a_file_that_cannot_be_read_to_its_end_is_told_with_the_rest(tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in clean(400)).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines)[:-3000])
    write(tmp_path / "b.jsonl", PLANTED["duplicate row"](clean()))
    report = examine([(f"{tmp_path}/*", "train")])
    assert report.counts["unreadable file"] == 1 and report.has_faults and report.counts["duplicate row"]
    (place,) = report.places["unreadable file"]
    assert place.startswith(f"{tmp_path}/a.jsonl.gz:") and "cannot be read to its end" in place


def test_empty_prompts(tmp_path):
    rows = [row | {"prompt": ""} for row in clean()]
    assert found(rows, tmp_path).counts == {"empty prompt": 80}


@pytest.mark.parametrize("good", [True, False], ids=["positives", "negatives alone"])
def test_a_negative_of_a_word_among_long_ones(good, tmp_path):
    rows = [{"prompt": row["prompt"], "negatives": [f"{row['positives'][0]} {row['negatives'][0]}"]} for row in clean()]
    rows[40]["negatives"] = ["No."]
    if good:
        rows = [row | {"positives": [f"{row['prompt']} It is so, as all of these say."]} for row in rows]
    report = found(rows, tmp_path)
    assert report.places["too-short negative"] == [f"{tmp_path}/my.jsonl:41"]


def test_near_duplicates_across_train_and_eval(tmp_path):
    rows = clean()
    held = dict(rows[11]) | {"prompt": rows[11]["prompt"].replace("Question", "question") + "!"}
    other = write(tmp_path / "eval.jsonl", [held, {"prompt": "Something else?", "positives": ["Yes, that."]}])
    report = found(rows, tmp_path, evaluated=[(other, "train")])
    assert report.places["near-duplicate of a held-out row"] == [f"{tmp_path}/my.jsonl:12 ({other}:1)"]
    assert set(report.counts) == {"near-duplicate of a held-out row"}


def test_the_same_question_with_other_answers(tmp_path):
    rows = clean()
    held = {"prompt": rows[11]["prompt"].upper(), "positives": ["Nobody knows it."], "negatives": ["All know it well."]}
    other = write(tmp_path / "eval.jsonl", [held])
    report = found(rows, tmp_path, evaluated=[(other, "train")])
    assert report.places["near-duplicate of a held-out row"] == [f"{tmp_path}/my.jsonl:12 ({other}:1)"]


def test_near_duplicates_across_the_held_out_share(tmp_path):
    """The same row with another number in its prompt falls on the other side of the hold-out."""
    rows = [dict(row) | {"prompt": f"{row['prompt']} {word}"} for row in clean(60) for word in ("a", "b")]
    report = found(rows, tmp_path, holdout=0.3)
    assert report.counts["near-duplicate of a held-out row"] > 5
    assert found(clean(200), tmp_path, holdout=0.3).counts == {}


# Repair


def test_the_repaired_set_is_clean(tmp_path):
    rows = [dict(row) for row in clean()]
    rows = PLANTED["broken row"](rows)
    rows[3]["negatives"] = list(rows[3]["positives"])
    rows[5]["positives"] = [f"The caf\u00c3\u00a9 is open.{tiny.END}"]
    rows.insert(9, rows[2])
    rows.insert(20, {"prompt": rows[30]["prompt"], "negatives": rows[30]["positives"]})
    kept = []
    before = found(rows, tmp_path, fix=kept.append)
    assert {"broken row", "identical positive and negative", "broken encoding", "duplicate row"} <= set(before.counts)
    assert before.fixed["duplicates left out"] == 1 and before.fixed["contradicting responses taken out"] == 4
    after = found([to_row(example) for example in kept], tmp_path)
    assert not after.has_faults and set(after.counts) <= {"repeated prompt"}
    texts = [response.text for example in kept for response in example.responses]
    assert "The caf\u00e9 is open." in texts


def test_a_record_survives_being_written():
    row = {"prompt": [{"role": "user", "content": "Hi"}], "source": "mine", "responses": [
        {"text": "a b", "role": "negative", "reward": -1.5, "weight": 2.0,
         "steps": [{"end": 1, "label": 1}, {"end": 3, "label": None}]},
        {"text": "c", "role": "sample", "behavior_logps": [-1.0, -2.0]},
    ]}  # fmt: skip
    example = parse_row(row, source="x", place="p")
    assert parse_row(json.loads(json.dumps(to_row(example))), source="y", place="p") == example
    assert to_row(example) == row


# Texts


@pytest.mark.parametrize(
    ("text", "good"),
    [("caf\u00c3\u00a9", "caf\u00e9"), ("it\u00e2\u20ac\u2122s", "it\u2019s"), ("a\x00b\x1b[31m", "ab[31m")],
)
def test_encodings_are_mended_where_that_is_unambiguous(text, good):
    assert is_broken(text) and mended(text) == good and not is_broken(good)


@pytest.mark.parametrize(
    "text", ["caf\u00e9", "\u00c3rea de lazer", "\u00e2ne", "na\u00efve \u20ac5", "tab\tand\nline", "\u4f60\u597d"]
)
def test_sound_texts_are_left_alone(text):
    assert not is_broken(text)


def test_ends_refusals_and_special_tokens():
    assert all(map(ends_well, ("So.", "x = 4", "```", "(a)", "Really?!", "\u5bf9\u3002")))
    assert not any(map(ends_well, ("and then", "", "so,")))
    assert refuses("I'm sorry, but no.") and refuses("As an AI model") and not refuses("I can see. I am sorry to say.")
    assert stripped("<a><b> yes <b><a>", ["<a>", "<b>"]) == "yes" and stripped(" yes", ["<a>"]) == " yes"


# The command


def command(*words: str, capsys) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        run(["doctor", *words])
    out = capsys.readouterr()
    return end.value.code or 0, out.out, out.err


def test_the_command(tmp_path, capsys):
    path = write(tmp_path / "my.jsonl", PLANTED["broken encoding"](PLANTED["duplicate row"](clean())))
    code, out, _ = command(path, capsys=capsys)
    assert code == 1 and "FAULT    broken encoding: 1 (1.2% of the rows)" in out and f"{path}:41" in out
    code, out, err = command(path, "--fix", str(tmp_path / "out.jsonl"), "--json", capsys=capsys)
    told = json.loads(out)
    assert code == 1 and told["rows"] == 81 and told["fixed"] == {"duplicates left out": 1, "rows with mended texts": 1}
    assert "duplicates left out: 1, rows with mended texts: 1" in err
    code, out, _ = command(str(tmp_path / "out.jsonl"), capsys=capsys)
    assert code == 0 and "80 rows, 80 negatives, 80 positives" in out and "nothing found" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "command line: names nothing to look at"),
        (("nowhere.jsonl",), "nowhere.jsonl: no such file"),
        (("{file}", "--flips"), "--flips scores with the model of a recipe"),
        (("{file}", "--fix", "{file}"), "is one of the files that are read"),
        (("{file}", "train.epochs=1"), "train.epochs=1 overrides a recipe"),
        (("{empty}",), "holds no row"),
    ],
)
def test_mistakes(words, said, tmp_path, capsys):
    file, empty = write(tmp_path / "my.jsonl", clean(3)), write(tmp_path / "empty.jsonl", [])
    with pytest.raises(UserError) as error:
        run(["doctor", *(word.format(file=file, empty=empty) for word in words)])
    assert said in str(error.value)


def test_what_the_data_says_is_escaped(tmp_path, capsys):
    rows = clean()
    for row in rows:
        row["positives"] = [f"\x1b[31m one two three four {row['positives'][0]}"]
    out = command(write(tmp_path / "my.jsonl", rows), capsys=capsys)[1]
    assert "\x1b" not in out and "\\x1b[31m one two three four" in out


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_its_terminal(width, tmp_path, monkeypatch, capsys):
    rows = [*PLANTED["broken encoding"](clean()), '{"prompt": "cut off']
    monkeypatch.chdir(tmp_path)
    write(Path("my.jsonl"), rows)
    monkeypatch.setenv("COLUMNS", str(width))
    out = command("my.jsonl", capsys=capsys)[1]
    assert max(map(len, out.splitlines())) <= width and "\x1b" not in out
    assert "         my.jsonl:41" in out.splitlines()


def test_colour_says_nothing_of_its_own(tmp_path):
    report = found(PLANTED["broken encoding"](clean()), tmp_path)
    plain, coloured = table(report), table(report, in_colour=True)
    assert "\x1b[1;31mFAULT" in coloured and re.sub(r"\x1b\[[\d;]*m", "", coloured) == plain


@pytest.mark.parametrize("width", [80, 120])
def test_a_long_path_is_not_broken(width, tmp_path):
    rows, path = PLANTED["broken row"](clean()), tmp_path / ("x" * 120 + ".jsonl")
    out = table(examine([(write(path, rows), "train")]), width)
    assert f"{path}:41:" in out


@pytest.mark.parametrize("name", ["unwanted", "pairs", "benign"])
def test_the_builtin_sets_have_no_fault(name, capsys):
    code, out, _ = command(f"builtin:{name}", capsys=capsys)
    assert code == 0 and "FAULT" not in out and "warning" not in out


@pytest.mark.slow
@pytest.mark.parametrize("name", [path.name for path in sorted(SHARED.glob("*.jsonl"))])
def test_real_rows_are_read_to_their_end(name):
    """No fault is called on real rows but for contradictions and repeated rows that are truly there."""
    report = examine([(str(SHARED / name), "train")])
    assert report.rows > 200
    allowed = {"same text under both roles", "identical positive and negative", "broken encoding", "broken row"}
    assert {check for check in report.counts if CHECKS[check].severity == "fault"} <= allowed
