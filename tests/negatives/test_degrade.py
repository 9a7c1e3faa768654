"""`align negatives degrade`: from rows to records with negatives, by every door; killed, and what is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from align import recipe
from align.cli import run as align
from align.data import sources
from align.data.ledger import Ledger
from align.errors import UserError
from align.negatives import degrade, gaps
from tests import tiny
from tests.rollout_worlds import lines

RECIPE = """
name: tiny
model:     {{path: {folder}/model}}
data:      {{sources: [{folder}/rows.jsonl], max_length: 128}}
sampling:  {{k: 3, max_new_tokens: 16, batch_size: 12}}
degrade:   {{gap: 0.0}}
objective: {{name: simpo}}
train:     {{precision: fp32}}
output:    {folder}/out
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with two tiny models whose answers end soon, rows with a fact beside them, and a recipe."""
    folder = tmp_path_factory.mktemp("degrade")
    for name, seed in (("model", 0), ("weak", 1)):
        model = tiny.llama(seed, initializer_range=0.25)
        model.generation_config.eos_token_id = [257, *range(24)]
        model.save_pretrained(folder / name)
        tiny.tokenizer().save_pretrained(folder / name)
    rows = [
        {"prompt": f"Cat {n} ate {n} fish. How many fish?", "positives": [f"It ate {n}."], "negatives": ["own"],
         "meta": {"fact": f"Cats eat {n}."}}
        for n in range(9)
    ]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
    return folder


def made(world: Path, output: Path, *overrides: str) -> list[dict]:
    align(["negatives", "degrade", str(world / "recipe.yaml"), f"output={output}", *overrides])
    return lines(output / "negatives.jsonl")


def test_records_have_the_full_prompt_and_say_how_negatives_were_made(world, tmp_path, capsys):
    rows = made(world, tmp_path, "sampling.top_p=0.99")
    draws = {row["key"]: row for row in lines(tmp_path / "draws.jsonl")}
    found = {row["key"]: row["gaps"] for row in lines(tmp_path / "gaps-margin.jsonl")}
    assert {row["prompt"] for row in draws.values()} == {"Say something about fish."}
    kept = sum(gap is not None and gap >= 0 for own in found.values() for gap in own)
    assert 0 < kept == sum(len(row["responses"]) - 1 for row in rows)
    for row in rows:
        assert "fish. How many fish?" in row["prompt"] and "own" not in [one["text"] for one in row["responses"]]
        first, *negatives = row["responses"]
        assert first["role"] == "positive"
        for one in negatives:
            how = one["made"]
            assert one["role"] == "negative" and how["by"] == "degrade" and how["kept_by"] == "margin"
            assert how["evidence"] is False and how["gap"] >= 0
    assert len(sources.read(str(tmp_path / "negatives.jsonl"), "train", on_bad_rows="stop", ledger=Ledger())) == len(
        rows
    )
    assert '"kept": ' in capsys.readouterr().out


def test_gone_on_with_it_comes_to_the_same_bytes_and_another_gap_draws_nothing(world, tmp_path, monkeypatch):
    made(world, tmp_path / "whole")
    (tmp_path / "cut").mkdir()
    for name in ("draws", "gaps-margin"):
        whole = (tmp_path / f"whole/{name}.jsonl").read_bytes()
        about = json.loads((tmp_path / f"whole/{name}.json").read_text())
        (tmp_path / f"cut/{name}.json").write_text(json.dumps(about | {"finished": None}))
        end = whole.index(b"\n", len(whole) // 2) + 9  # in the middle of a line
        (tmp_path / f"cut/{name}.jsonl").write_bytes(whole[: end if name == "draws" else 0])
    made(world, tmp_path / "cut")
    for name in ("draws", "gaps-margin", "negatives"):
        assert (tmp_path / f"cut/{name}.jsonl").read_bytes() == (tmp_path / f"whole/{name}.jsonl").read_bytes(), name
    monkeypatch.setattr("align.generation.draw", None)
    monkeypatch.setattr(gaps.Margin, "measure", None)
    fewer = made(world, tmp_path / "whole", "degrade.gap=0.3")
    found = [gap for row in lines(tmp_path / "whole/gaps-margin.jsonl") for gap in row["gaps"] if gap is not None]
    assert sum(len(row["responses"]) - 1 for row in fewer) == sum(gap >= 0.3 for gap in found) < len(found)
    with pytest.raises(UserError, match="was made with condition both, now it is evidence"):
        made(world, tmp_path / "whole", "degrade.condition=evidence")


@pytest.mark.parametrize(
    ("overrides", "prompt"),
    [
        (["degrade.condition=evidence"], "How many fish?"),
        (["degrade.condition=none"], "Cat 0 ate 0 fish. How many fish?"),  # self-play
        (["degrade.condition=none", "degrade.model={world}/weak"], "Cat 0 ate 0 fish. How many fish?"),
        (["degrade.condition=none", "degrade.evidence=[meta.fact]"], "Cats eat 0.\n\nCat 0 ate 0 fish. How many fish?"),
    ],
)
def test_doors(world, tmp_path, overrides, prompt):
    own = [word.format(world=world) for word in overrides]
    verified = ["degrade={kept_by: verifier, verifier: {name: exact}}"]
    rows = made(world, tmp_path, "sampling.k=2", *verified, *own)
    assert prompt in [row["prompt"] for row in lines(tmp_path / "draws.jsonl")]
    how = rows[0]["responses"][-1]["made"]
    assert how["kept_by"] == "verifier" and "gap" not in how
    assert how["model"].endswith("weak" if len(own) == 2 and "model" in own[1] else "model")
    if "meta.fact" in own[-1]:
        assert all(row["prompt"].startswith("Cats eat") for row in rows)


def test_other_positives_are_compared_anew(world, tmp_path):
    """What was drawn and measured beside other right answers says nothing of these."""
    given = [f"data.sources=[{tmp_path / 'own.jsonl'}]", "degrade.condition=none"]
    rows = [json.loads(line) for line in (world / "rows.jsonl").read_text().splitlines()]
    for text, refused in (("It ate {}.", False), ("It ate {} fish.", True)):
        own = [row | {"positives": [text.format(n)]} for n, row in enumerate(rows)]
        (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
        if refused:
            with pytest.raises(UserError, match="was made with positives_sha256"):
                made(world, tmp_path / "out", *given)
            (tmp_path / "out/draws.json").unlink()  # as if drawn anew
            with pytest.raises(UserError, match="was made with compared_sha256"):
                made(world, tmp_path / "out", *given)
        else:
            made(world, tmp_path / "out", *given)


def test_what_is_right_by_another_row_of_the_prompt_is_right(world, tmp_path):
    given = ["degrade={condition: none, kept_by: verifier, verifier: {name: exact}}"]
    rows = [{"prompt": "How many?", "positives": [text]} for text in ("4", "four", "4")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    loaded = recipe.load(world / "recipe.yaml", [f"data.sources=[{tmp_path / 'own.jsonl'}]", "eval.holdout=0", *given])
    (task,) = degrade.tasks(loaded, tiny.tokenizer(), Ledger())
    assert task.example.texts("positive") == ["4", "four"]


def judge_nothing(example, text, ends):
    return [None]


def test_what_is_told(world, tmp_path, monkeypatch):
    before = made(world, tmp_path / "a")
    with pytest.raises(UserError, match=r"no candidate is left of 27 answers \(.*gap too small: \d+"):
        made(world, tmp_path / "a", "degrade.gap=99")
    assert lines(tmp_path / "a/negatives.jsonl") == before, "what was finished is kept"
    with pytest.raises(UserError, match=r"no evidence under the keys of degrade\.evidence: 9"):
        made(world, tmp_path / "b", "degrade.evidence=[meta.facts]")
    judge = "judges={function: {name: tests.negatives.test_degrade.judge_nothing}}"
    with pytest.raises(UserError, match=r"no candidate is left.*not judged"):
        made(world, tmp_path / "a", "degrade.kept_by=judge", judge)
    monkeypatch.setattr(gaps.Margin, "measure", lambda self, cases: [[float("nan")] * len(c.answers) for c in cases])
    with pytest.raises(
        UserError, match=r"rows.jsonl:\d+: a score is not a finite number; what was scored before is kept"
    ):
        made(world, tmp_path / "c")
    assert len(lines(tmp_path / "c/draws.jsonl")) == 9
    with pytest.raises(UserError, match="its section degrade makes rows, it does not train"):
        align(["train", str(world / "recipe.yaml")])
