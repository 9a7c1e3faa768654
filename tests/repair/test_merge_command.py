"""`align merge`: sweeps, what it writes and `align evaluate` says of it, what it refuses; once as a user runs it."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from align import cli
from align.errors import UserError
from tests.commands import run


@pytest.fixture
def align(capsys):
    """What a command prints as JSON."""

    def command(*arguments: object) -> dict:
        capsys.readouterr()
        threads = torch.get_num_threads()
        cli.run([*map(str, arguments), "--json"])
        torch.set_num_threads(threads)
        return json.loads(capsys.readouterr().out)

    return command


def test_a_sweep_says_what_evaluate_says_of_the_merged_weights(align, lora_run, uneven_rows, tmp_path):
    found = align("merge", lora_run, "--sweep", 0.1, 0.5, "--data", uneven_rows, "--out", tmp_path / "chosen")
    assert [point["a"] for point in found["points"]] == [0.1, 0.5, 1.0]
    assert found["data"]["rows_used"] == 24 and found["data"]["sha256"]
    assert found["made"]["folder"] == str(tmp_path / "chosen") and found["chosen"] == found["made"]["a"]
    align("merge", lora_run, "--interpolate", 0.5, "--out", tmp_path / "half")
    for folder, a in ((lora_run, 1.0), (tmp_path / "half", 0.5), (tmp_path / "chosen", found["chosen"])):
        (measured,) = align("evaluate", folder, "--data", uneven_rows, "--measure", "multiple_choice")[
            "measures"
        ].values()
        accuracy = measured["metrics"]["accuracy by sum"]
        point = next(point for point in found["points"] if point["a"] == a)
        policy, lost = accuracy["policy"], point["flips"]
        assert (point["accuracy"], point["gain"]) == (policy["value"], policy["change"])
        assert (lost["wrong_to_right"], lost["right_to_wrong"]) == (policy["won"], policy["lost"])
    assert accuracy["base"]["value"] == found["base"]["accuracy"]


def test_flips_are_counted_on_other_rows(align, full_run, uneven_rows, tmp_path):
    rows = [{"prompt": f"Is {n} small?", "positives": ["It is."], "negatives": ["No", "red"]} for n in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = align("merge", full_run, "--sweep", "--data", uneven_rows, "--flips", tmp_path / "rows.jsonl")
    assert len(found["points"]) == 10 and "folder" not in found["made"]
    assert {point["flips"]["questions"] for point in found["points"]} == {6}
    assert found["made"]["form"] == "full" and found["flips"]["rows_used"] == 6


def test_fishers_weights_are_held_by_what_the_base_relies_on(align, lora_run, tiny_model):
    """Without --out into the run itself. Of most weights more of the policy stays than of a plain merge: F < 1."""
    made = align("merge", lora_run, "--interpolate", 0.5, "--fisher")["made"]
    assert (made["kind"], made["form"], made["fisher_answers"]) == ("fisher", "full", 24)
    assert made["folder"] == str(lora_run / "merged-0.5-fisher")
    merged = dict(AutoModelForCausalLM.from_pretrained(made["folder"]).named_parameters())
    base = dict(AutoModelForCausalLM.from_pretrained(tiny_model).named_parameters())
    whole = align("merge", lora_run, "--interpolate", 1, "--full")["made"]["folder"]
    policy = dict(AutoModelForCausalLM.from_pretrained(whole).named_parameters())
    moved = torch.cat([(policy[name] - base[name]).flatten() for name in base])
    share = (
        torch.cat([(merged[name] - base[name]).flatten() for name in base])[moved.abs() > 1e-3]
        / moved[moved.abs() > 1e-3]
    )
    assert share.min() > -1e-3 and share.max() < 1.001
    assert share.min() < 0.3 and share.median() > 0.5, "1 / (F + 1)"


@pytest.mark.slow
def test_as_a_user_runs_it(full_run, uneven_rows, tmp_path):
    merge = [sys.executable, "-m", "align.cli", "merge"]
    result = run(merge, full_run, "--sweep", 0.2, "--data", uneven_rows, "--fisher", uneven_rows)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "fisher interpolation, 0 is the base" in result.stdout and "right to wrong" in result.stdout
    refused = run(merge, full_run, "--interpolate", 0.2, "--full")
    assert refused.returncode == 2 and refused.stderr.strip().endswith("leave it out")


def test_mistakes_are_one_line(lora_run, uneven_rows, tmp_path):
    for arguments, message in (
        ([lora_run], "neither or both"),
        ([lora_run, "--interpolate", 0.5, "--sweep"], "neither or both"),
        ([lora_run, "--sweep"], "add --data SOURCE"),
        ([lora_run, "--sweep", 2, "--data", uneven_rows], "--sweep: 2 is outside of 0..1"),
        ([lora_run, "--interpolate", "nan"], "outside of 0..1"),
        ([lora_run, "--interpolate", 0.5, "--flips", uneven_rows], "is for a sweep"),
        ([lora_run, "--interpolate", 0.5, "--out", tmp_path], "is there already"),
        ([lora_run, "--sweep", "--data", tmp_path / "none.jsonl"], "no such file"),
        ([lora_run, "--interpolate", 0.3, "--fisher", tmp_path / "none.jsonl"], "--fisher: "),
        ([tmp_path, "--interpolate", 0.5], "is no finished run"),
        ([lora_run, "--sweep", "--data", uneven_rows, "--full"], "add --out FOLDER"),
        ([lora_run, "--interpolate", 0.5, "--out", uneven_rows / "here"], "cannot be written: Not a directory"),
    ):
        with pytest.raises(UserError) as error:
            cli.run(["merge", *map(str, arguments)])
        assert message in str(error.value) and "\n" not in str(error.value)
