"""`align evaluate` on finished runs: heads, a policy, curves, what it refuses; once through the real command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from align import cli, job, recipe
from align.data.ledger import Ledger
from align.data.tokenize import encode_prompt
from align.errors import UserError
from align.evaluation import command, measures, multiple_choice, subject
from align.evaluation.probe import Probe
from align.evaluation.settings import Settings
from align.generation import generate
from align.likelihood_ratio import LikelihoodRatioModel
from align.run import RunFolder
from tests import tiny
from tests.commands import run

EVALUATE = [sys.executable, "-m", "align.cli", "evaluate"]

RECIPE = """
name: evaluated
model:     {{path: {model}, adapter: {adapter}}}
data:      {{sources: [{data}], max_length: 128{nat}}}
objective: {{name: {objective}}}
train:     {{learning_rate: 1.0e-2, max_steps: 4, prompts_per_step: 8, seed: 3, precision: fp32}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""


def finished(
    folder: Path, model: Path, data: Path, objective: str, *settings: str, adapter="{rank: 4}", nat=""
) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(RECIPE.format(model=model, data=data, objective=objective, adapter=adapter, nat=nat))
    threads = torch.get_num_threads()
    job.train(recipe.load(file, [f"output={folder / 'run'}", *settings]))
    torch.set_num_threads(threads)
    return folder / "run"


@pytest.fixture(scope="module")
def heads(tiny_model, uneven_rows, tmp_path_factory) -> Path:
    return finished(tmp_path_factory.mktemp("likra"), tiny_model, uneven_rows, "likra", "train.snapshots=true")


@pytest.fixture
def evaluate(capsys):
    """What the command prints: as JSON, or as text."""

    def evaluated(*arguments: object, as_json: bool = True):
        capsys.readouterr()
        threads = torch.get_num_threads()
        cli.run(["evaluate", *map(str, arguments), *(["--json"] if as_json else [])])
        torch.set_num_threads(threads)
        printed = capsys.readouterr().out
        return json.loads(printed) if as_json else printed

    return evaluated


def accuracies(found: dict, data: Path) -> dict[str, float]:
    """The accuracy by sum of each score."""
    metrics = found["measures"][f"multiple_choice: {data}"]["metrics"]
    return {name: figure["value"] for name, figure in metrics["accuracy by sum"].items()}


def test_heads_and_their_ratio(evaluate, heads, uneven_rows):
    found = evaluate(heads, "--data", uneven_rows)
    scores = accuracies(found, uneven_rows)
    assert list(scores) == ["base", "positive", "negative", "ratio to base", "ratio"]
    assert [key.split(":")[0] for key in found["measures"]] == [
        "preference_accuracy", "multiple_choice", "flips", "drift"
    ]  # fmt: skip
    for one in found["measures"].values():
        assert one["rows"]["rows_used"] == 24 and one["data_sha256"]
    lost = found["measures"][f"flips: {uneven_rows}"]["flips"]["by sum"]["ratio"]
    change = (lost["wrong_to_right"] - lost["right_to_wrong"]) / 24
    assert scores["ratio"] - scores["base"] == pytest.approx(change)
    model = LikelihoodRatioModel.from_pretrained(heads, arithmetic="fp32")
    right = {"base": 0, "ratio": 0}
    for line in uneven_rows.read_text().splitlines():
        row = json.loads(line)
        answers = row["negatives"] + row["positives"]
        logps = model.logps(row["prompt"], answers)
        for name, values in (("base", logps["base"]), ("ratio", model.score(row["prompt"], answers))):
            right[name] += bool(values[-1] > values[:-1].max())
    for name, count in right.items():
        assert scores[name] == pytest.approx(count / 24)
    assert 0 < right["base"] < 24, "a base that is always right or wrong would hide a mistake"


@pytest.mark.slow
def test_the_weight_is_chosen_on_other_rows(heads, uneven_rows, tmp_path):
    """By the real command line."""
    tune = tmp_path / "tune.jsonl"
    rows = [{"prompt": f"Is {n} small?", "positives": ["It is."], "negatives": ["No", "red"]} for n in range(6)]
    tune.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(EVALUATE, heads, "--data", uneven_rows, "--tune", tune)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "24 of 24 rows" in result.stdout and "accuracy by sum" in result.stdout
    assert "by --tune" in result.stdout
    refused = run(EVALUATE, heads, "--data", uneven_rows, "--tune", "builtin:pairs")  # all too long for this run
    assert refused.returncode == 2
    assert "--tune: no row can be used (too long" in refused.stderr


def test_curve(evaluate, heads, uneven_rows, tmp_path):
    pytest.importorskip("matplotlib")
    image = tmp_path / "curve.svg"
    found = evaluate(heads, "--data", uneven_rows, "--curve", "--plot", image)
    (points,) = found["curves"].values()
    assert list(points) == ["0", "8", "16", "32"] and list(points["0"]) == ["base"]
    final = accuracies(evaluate(heads, "--data", uneven_rows), uneven_rows)
    for name in ("base", "positive", "negative", "ratio"):  # four steps: the last snapshot is the final one
        assert points["32"][name]["sum"]["accuracy"] == final[name], name
    assert b"<svg" in image.read_bytes()[:400]
    assert evaluate(heads, "--data", uneven_rows, "--curve", "--rows", "9")["rows"]["rows_used"] == 9
    assert (found["rows"]["rows_read"], found["rows"]["rows_used"]) == (24, 24)
    text = evaluate(heads, "--data", uneven_rows, "--curve", as_json=False)
    assert "ratio to base" in text and "accuracy by sum" in text


def test_another_base_under_the_same_name_is_noticed(evaluate, uneven_rows, tmp_path):
    base = tmp_path / "base"
    tiny.save(base)
    run = finished(tmp_path, base, uneven_rows, "dpo")
    measure = (run, "--data", uneven_rows, "--rows", "4", "--measure", "drift")
    assert evaluate(*measure)["measures"]
    tiny.save(base, seed=5)
    with pytest.raises(UserError, match=r"holds other weights than those that .* began with"):
        evaluate(*measure)


def test_json_of_several_runs_is_one_document(evaluate, heads, uneven_rows, tmp_path):
    shutil.copytree(heads, tmp_path / "again")
    found = evaluate(heads, tmp_path / "again", "--data", uneven_rows, "--rows", "4", "--measure", "drift")
    assert [one["made"]["run"] for one in found] == [str(heads), str(tmp_path / "again")]
    assert found[0]["measures"] == found[1]["measures"]


def test_the_policy_of_another_objective(evaluate, tiny_model, uneven_rows, tmp_path):
    policy = finished(tmp_path, tiny_model, uneven_rows, "dpo", "train.learning_rate=0.05")
    scores = accuracies(evaluate(policy, "--data", uneven_rows), uneven_rows)
    assert list(scores) == ["base", "policy"]
    assert scores["policy"] > scores["base"], "it was trained on these rows"
    loaded, ledger = subject.load(policy), Ledger()
    asked, answers = Probe(loaded, Settings(max_new_tokens=8)).answers(
        multiple_choice.questions(str(uneven_rows), ledger)[:6], ledger, "--data"
    )
    prompts = [encode_prompt(loaded.tokenizer, one.prompt) for one in asked]
    assert answers["base"] == generate(tiny.llama(), loaded.tokenizer, prompts, 8)
    assert answers["policy"] != answers["base"]


def test_a_fully_trained_policy_is_compared_with_the_base(evaluate, tiny_model, uneven_rows, tmp_path):
    full = finished(tmp_path, tiny_model, uneven_rows, "simpo", adapter="null")
    measured = evaluate(full, "--data", uneven_rows, "--measure", "drift", "--measure", "kl")["measures"]
    assert [one["measure"] for one in measured.values()] == ["drift", "kl"]
    drift, kl = (one["metrics"]["positives"]["policy"] for one in measured.values())
    assert abs(drift["change"]) > 0.01 and kl["value"] > 0.001


def test_what_a_run_held_out_is_measured_where_no_data_is_named(evaluate, tiny_model, uneven_rows, tmp_path):
    settings = ("eval.holdout=0.3", "data.max_length=700", "train.learning_rate=0.05")
    run = finished(tmp_path, tiny_model, uneven_rows, "dpo", *settings)
    found = evaluate(run, "--rows", "12", "--max-new-tokens", "4")["measures"]
    own, benign = f"{uneven_rows}, held out", "builtin:benign"
    assert list(found) == [
        f"drift: {benign}", f"kl: {benign}", f"over_refusal: {benign}", f"repetition: {benign}",
        f"preference_accuracy: {own}", f"multiple_choice: {own}", f"flips: {own}", f"drift: {own}", f"kl: {own}",
    ]  # fmt: skip
    held_out = json.loads((run / "data.json").read_text())["dropped"]["held out"]["count"]
    assert found[f"drift: {own}"]["rows"]["rows_used"] == held_out > 1
    before = json.loads((run / "evaluation.json").read_text())
    for role, name in (("positives", "good answers"), ("negatives", "negatives")):
        figures = found[f"drift: {own}"]["metrics"][role]
        ((_, then),) = [one for one in before["before"].items() if one[0].endswith(name)]
        ((_, now),) = [one for one in before["after"].items() if one[0].endswith(name)]
        assert figures["base"]["value"] == pytest.approx(then["logps"], abs=1e-4)
        assert figures["policy"]["value"] == pytest.approx(now["logps"], abs=1e-4)
        assert found[f"kl: {own}"]["metrics"][role]["policy"]["value"] == pytest.approx(now["kl"], abs=1e-4)
    kept = json.loads((run / "evaluations.json").read_text())
    assert kept["measures"] == found and kept["made"]["weights_sha256"]
    more = evaluate(run, "--data", uneven_rows, "--measure", "kl")["measures"]
    assert json.loads((run / "evaluations.json").read_text())["measures"] == found | more
    text = evaluate(run, "--rows", "6", "--measure", "repetition", as_json=False)
    assert "repetition · builtin:benign" in text and "repeated 4-grams" in text
    command.keep(RunFolder(run), {"weights_sha256": "others"}, {"kl: x": {}})
    assert json.loads((run / "evaluations.json").read_text())["measures"] == {"kl: x": {}}


def test_nats_policy_is_asked_behind_its_prompt(tiny_model, uneven_rows, tmp_path):
    nat = ", nat: {success: Be right., failure: Be wrong.}"
    loaded = subject.load(finished(tmp_path, tiny_model, uneven_rows, "nll", nat=nat))
    assert loaded.prefix == "Be right."
    examples = multiple_choice.questions(str(uneven_rows), Ledger())
    asked = multiple_choice.score(loaded, examples, Ledger()).logps
    bare = multiple_choice.score(dataclasses.replace(loaded, prefix=None), examples, Ledger()).logps
    np.testing.assert_allclose(np.concatenate(asked["base"]), np.concatenate(bare["base"]), atol=1e-4)
    assert np.abs(np.concatenate(asked["policy"]) - np.concatenate(bare["policy"])).max() > 0.01


def test_mistakes_are_one_line(heads, uneven_rows, tmp_path):
    wrong, damaged, strange = tmp_path / "wrong.jsonl", tmp_path / "damaged", tmp_path / "strange"
    wrong.write_text('{"prompt": "Why?", "negatives": ["So."]}\n')
    cut_off, other = tmp_path / "cut-off", tmp_path / "other"
    for folder in (cut_off, other):
        shutil.copytree(heads, folder)
    (cut_off / "final" / "positive" / "adapter_model.safetensors").write_bytes(b"12")
    recipe_text = (other / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe_text.replace("trust_remote_code", "of_another_version"))
    for folder, file in ((damaged, "evaluations.json"), (strange, "recipe.yaml")):
        shutil.copytree(heads, folder)
        (folder / file).write_text("[")
    (strange / "recipe.yaml").write_text("model")
    for arguments, message in (
        ([tmp_path, "--data", uneven_rows], "is no finished run"),
        ([heads, "--data", tmp_path / "none.jsonl"], "no such file"),
        ([heads, "--data", uneven_rows, "--plot", "x.png"], "add --curve"),
        ([heads, "--data", uneven_rows, "--curve", "--plot", "x.txt"], "neither .png nor .svg"),
        ([heads, "--data", uneven_rows, "--curve", "--tune", uneven_rows], "leave out --curve"),
        ([heads, "--curve"], "--data"),
        ([heads, "--data", uneven_rows, "--measure", "flip"], "did you mean 'flips'"),
        ([heads, "--data", uneven_rows, "--measure", "pass_at_k"], "add --verifier"),
        ([heads, "--data", uneven_rows, "--verifier", "regex"], "regex:PATTERN"),
        ([heads, "--data", uneven_rows, "--verifier", "numerik"], "did you mean 'numeric'"),
        ([heads, "--data", uneven_rows, "--measure", "negative_bias"], "rows whose answers are yes and no"),
        ([heads, "--measure", "negative_bias"], "name rows with --data"),
        ([heads, "--lm-eval-path", tmp_path], "add --lm-eval"),
        ([heads, "--samples", "4"], "add --verifier"),
        ([heads, "--measure", "kl", "--verifier", "exact"], "is for pass_at_k"),
        ([heads, "--data", uneven_rows, "--max-new-tokens", "4"], "measures that have answers written"),
        ([heads, "--data", uneven_rows, "--curve", "--max-new-tokens", "4"], "leave out --curve"),
        ([heads, "--data", uneven_rows, "--measure", "kl", "--tune", uneven_rows], "add --measure multiple_choice"),
        ([heads, "--data", wrong, "--verifier", "exact"], "no row has a right answer"),
        ([heads, tmp_path, "--data", uneven_rows], f"{tmp_path}: is no finished run"),
        ([damaged, "--data", uneven_rows], "evaluations.json: is damaged"),
        ([strange, "--data", uneven_rows], "recipe.yaml: is no recipe as a run writes it"),
        ([cut_off, "--data", uneven_rows], "cannot be loaded onto this base"),
        ([other, "--data", uneven_rows], "recipe.yaml: model is not as this version writes it"),
    ):
        with pytest.raises(UserError) as error:
            cli.run(["evaluate", *map(str, arguments)])
        assert message in str(error.value) and "\n" not in str(error.value)


def test_help_names_every_measure(capsys):
    with pytest.raises(SystemExit):
        cli.run(["evaluate", "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in measures.MEASURES)
