"""Files of a stage: what survives a kill, and what is refused."""

import json

import pytest

from align.errors import UserError
from align.stage import Stage


def test_lines_are_kept_and_one_cut_off_is_dropped(tmp_path):
    file = tmp_path / "a" / "rows.jsonl"
    Stage(file, {"seed": 1}).add([{"n": 1}, {"n": 2}])
    with open(file, "ab") as out:
        out.write('{"n": "é'.encode()[:-1])  # in the middle of a letter
    again = Stage(file, {"seed": 1})
    assert again.rows == [{"n": 1}, {"n": 2}] and not again.finished
    again.add([{"n": 3}])
    again.finish(count=3)
    assert [json.loads(line)["n"] for line in file.read_text().splitlines()] == [1, 2, 3]
    about = json.loads((tmp_path / "a" / "rows.json").read_text())
    assert about["made_by"] == {"seed": 1} and about["count"] == 3 and about["begun"] <= about["finished"]


def test_what_was_made_otherwise_is_not_gone_on_with(tmp_path):
    Stage(tmp_path / "rows.jsonl", {"seed": 1, "model": "a"}).add([{"n": 1}])
    with pytest.raises(UserError, match="was made with seed 1, now it is 2"):
        Stage(tmp_path / "rows.jsonl", {"seed": 2, "model": "a"})
    with pytest.raises(UserError, match="was made with k null, now it is 3"):
        Stage(tmp_path / "rows.jsonl", {"seed": 1, "model": "a", "k": 3})


def test_damage_is_told(tmp_path):
    Stage(tmp_path / "rows.jsonl", {}).add([{"n": 1}])
    (tmp_path / "rows.jsonl").write_text("no json\n")
    with pytest.raises(UserError, match="is damaged"):
        Stage(tmp_path / "rows.jsonl", {})
