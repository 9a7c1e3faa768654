"""The first step's comparison of policy and reference: what it lets pass, what it stops, and which cause it names."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from align.data.collate import collate
from align.objectives import NEGATIVE, POSITIVE, SAMPLE, load
from align.reference import ADAPTER_OFF, FROZEN, References, freeze
from align.reference.commands import entries
from align.reference.store import Store, response_keys
from align.scoring.logprobs import response_logps
from align.start_check import StartCheck, must_agree
from align.view import Scorer
from tests import tiny
from tests.commands import TRAIN, TWO_RANKS, metrics, run, trained

AGREE = References(ADAPTER_OFF, None, {})


def check(objective, references: References = AGREE, precision: str = "fp32") -> StartCheck:
    return StartCheck(objective, references, precision)


def test_equal_models_do_not_drift():
    batch = tiny.batch([(POSITIVE, [0.0, 0.0]), (NEGATIVE, [0.0]), (NEGATIVE, [9e-4, -9e-4])])
    assert check(load("dpo")()).drift(batch) is None


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [("dpo", {"beta": 0.3}, math.log(2)), ("npo", {"beta": 0.3}, 2 / 0.3 * math.log(2)), ("ipo", {"beta": 0.5}, 1.0)],
)
def test_the_loss_that_must_be(name, options, expected):
    """DPO ln 2, NPO 2/beta ln 2, IPO (1 / (2 beta))^2: what an independent formula gives for log-ratios of 0."""
    batch = tiny.batch([(POSITIVE, [0.5, -0.5]), (NEGATIVE, [0.2])], [(POSITIVE, [0.0]), (NEGATIVE, [0.3, 0.1, 0.9])])
    objective = load(name)(**options)
    drift = check(objective).drift(batch)
    assert drift.expected == pytest.approx(expected, abs=1e-6)
    assert drift.loss == pytest.approx(objective(batch).losses.mean().item(), abs=1e-6) != drift.expected


def test_the_worst_response_is_found_by_its_mean_over_tokens():
    batch = tiny.batch([(POSITIVE, [0.3, -0.3, 0.3, -0.3]), (NEGATIVE, [-0.5])], [(NEGATIVE, [1.0, 0.0, 0.0, 0.0])])
    drift = check(load("npo")()).drift(batch)
    assert (drift.response, drift.nats) == (1, pytest.approx(0.5))


@pytest.mark.parametrize(("precision", "nats"), [("fp32", 1e-3), ("bf16", 0.1)])
def test_rounding_is_no_drift(precision, nats):
    below, above = (tiny.batch([(NEGATIVE, [share * nats] * 5)]) for share in (0.9, 1.1))
    assert check(load("npo")(), precision=precision).drift(below) is None
    assert check(load("npo")(), precision=precision).drift(above) is not None


def test_a_store_of_float16_may_round(tmp_path):
    store = Store(tmp_path, "00" * 32, dtype="float16")
    references = References(ADAPTER_OFF, None, {}, stores={ADAPTER_OFF: store})
    assert 0 < store.rounding < 0.05
    batch = tiny.batch([(NEGATIVE, [0.9 * store.rounding + 9e-4])])
    assert check(load("npo")()).drift(batch) and not check(load("npo")(), references).drift(batch)


def test_only_responses_whose_reference_is_the_start_are_held():
    """D2O's second reference: samples against the frozen start, negatives against another model."""
    references = References("other/model", FROZEN, {})
    batch = tiny.batch([(NEGATIVE, [3.0]), (SAMPLE, [0.0, 0.0])])
    assert check(load("d2o")(), references).drift(batch) is None
    batch = tiny.batch([(NEGATIVE, [3.0]), (SAMPLE, [0.4, 0.0])])
    objective = load("d2o")()
    drift = check(objective, references).drift(batch)
    assert (drift.response, drift.nats) == (1, pytest.approx(0.2))
    untouched = objective(tiny.batch([(NEGATIVE, [3.0]), (SAMPLE, [0.0, 0.0])])).losses.mean().item()
    assert drift.expected == pytest.approx(untouched, abs=1e-6), "the negative keeps the log-ratio it has"


def test_no_number_is_left_to_the_check_of_the_loss():
    assert check(load("npo")()).drift(tiny.batch([(NEGATIVE, [math.nan])])) is None


def test_without_reference_there_is_nothing_to_compare():
    batch = dataclasses.replace(tiny.batch([(POSITIVE, [5.0]), (NEGATIVE, [5.0])]), ref_logps=None)
    assert check(load("simpo")()).drift(batch) is None


@pytest.fixture
def rows():
    return [tiny.row("Where?", positives=["Here."], negatives=["I know not."], place="mine.jsonl:7")]


def found(rows, policy, references: References) -> str:
    """What is said of the drift on these rows."""
    objective = load("dpo")()
    scorer, batch = Scorer(objective, references, None, 0), collate(rows, 258)
    view = scorer.view(batch, *scorer.policy(policy, batch, 0), scorer.others(policy, batch))
    start = check(objective, references)
    drift = start.drift(view)
    assert drift is not None
    return str(start.error(policy, batch, drift))


def test_other_weights_are_named(rows):
    text = found(rows, tiny.llama(1), References(FROZEN, None, {FROZEN: freeze(tiny.llama(2))}))
    assert text.startswith("step 1: mine.jsonl:7: policy and reference are the same model, but on Where? they are ")
    assert "must be 0.6931" in text and "their weights differ" in text


def test_a_wrong_store_is_named(rows, tmp_path):
    policy = tiny.llama(1)
    references = References(FROZEN, None, {FROZEN: freeze(tiny.llama(1))})
    references.stores[FROZEN] = store = Store(tmp_path, "00" * 32)
    batch = collate(rows, 258)
    with torch.no_grad():
        wrong = response_logps(policy, batch) - 0.5
    keys = response_keys(store.identity, batch.rows)
    store.put({key: values[own].numpy() for key, values, own in zip(keys, wrong, batch.mask, strict=True)})
    text = found(rows, policy, references)
    assert "0.5 nats a token apart" in text and "the stored log-probs are not the reference's" in text
    assert "align ref verify" in text


def test_a_model_that_trains_otherwise_is_named(rows):
    policy = tiny.llama(1)
    policy.model.layers[0].mlp.register_forward_hook(lambda mlp, inputs, out: out * 2 if mlp.training else out)
    policy.train()
    text = found(rows, policy, References(FROZEN, None, {FROZEN: freeze(tiny.llama(1))}))
    assert "the model computes otherwise while it trains" in text
    assert policy.training, "it goes on as it was"


def test_another_ranks_drift_is_left_to_that_rank(rows):
    references = References(FROZEN, None, {FROZEN: freeze(tiny.llama(2))})
    error = check(load("dpo")(), references).error(tiny.llama(1), collate(rows, 258), None)
    assert "policy and reference differ on another rank" in str(error)


def test_dropout_makes_models_differ():
    assert must_agree(tiny.llama())
    assert not must_agree(tiny.llama(attention_dropout=0.1))
    policy = tiny.llama()
    policy.model.layers[0].mlp = nn.Sequential(policy.model.layers[0].mlp, nn.Dropout(0.1))
    assert not must_agree(policy)
    policy.model.layers[0].mlp[1].p = 0.0
    assert must_agree(policy)


RECIPE = """
name: start
model:     {{path: {model}, adapter: {{rank: 4{adapter}}}}}
data:      {{sources: [{data}], max_length: 128}}
reference: {{store: {store}}}
objective: {{name: {objective}, beta: 0.2}}
train:     {{learning_rate: 1.0e-2, max_steps: 2, prompts_per_step: 8, precision: fp32, tokens_per_device: 400}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    unset
"""


def write(folder: Path, model: Path, data: Path, adapter: str = "", objective: str = "dpo") -> Path:
    recipe = folder / "start.yaml"
    recipe.write_text(
        RECIPE.format(model=model, data=data, store=folder / "store", adapter=adapter, objective=objective)
    )
    return recipe


def lower(store: Path) -> None:
    """Writes every stored log-prob again, lower by a nat: whole records, as a faulty import would leave them."""
    (folder,) = [path for path in store.iterdir() if path.is_dir()]
    values = {entry.key: entry.values - np.float32(1) for part in folder.glob("part-*") for entry in entries(part)}
    assert values
    shutil.rmtree(folder)
    Store(store, folder.name).put(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "expected"), [("dpo", math.log(2)), ("npo", 2 / 0.2 * math.log(2)), ("bdpo", None)]
)
def test_the_first_loss_is_the_known_one(objective, expected, tiny_model, uneven_rows, tmp_path):
    recipe = write(tmp_path, tiny_model, uneven_rows, objective=objective)
    first = metrics(trained(recipe, tmp_path / "run", TRAIN))[0]
    assert abs(first["log_ratio/negative"]) < 1e-5
    assert expected is None or first["loss"] == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("command", [TRAIN, TWO_RANKS], ids=["one-process", "two-ranks"])
def test_a_run_with_wrong_references_ends_at_once(command, tiny_model, uneven_rows, tmp_path):
    """Nothing is learned, and the line says what is wrong and what to do; mended, the same command runs."""
    recipe = write(tmp_path, tiny_model, uneven_rows)
    trained(recipe, tmp_path / "fine", command)
    lower(tmp_path / "store")
    result = run(command, recipe, f"output={tmp_path / 'run'}")
    assert result.returncode == (2 if command == TRAIN else 1), result.stderr[-2000:]  # torchrun makes 1 of it
    (line,) = [line for line in result.stderr.splitlines() if "policy and reference are the same model" in line][:1]
    assert "step 1: " in line and "they are 1 nats a token apart" in line
    assert "the stored log-probs are not the reference's" in line
    assert command != TRAIN or "Traceback" not in result.stderr  # torchrun adds one of its own
    assert not (tmp_path / "run" / "metrics.jsonl").exists() and not (tmp_path / "run" / "final").exists()
    mended = run(command, recipe, f"output={tmp_path / 'run'}", "reference.store=off", "train.resume=true")
    assert mended.returncode == 0, mended.stderr[-2000:]


@pytest.mark.slow
def test_dropout_is_not_taken_for_drift(tiny_model, uneven_rows, tmp_path):
    recipe = write(tmp_path, tiny_model, uneven_rows, adapter=", dropout: 0.5")
    values = metrics(trained(recipe, tmp_path / "run", TRAIN, "train.learning_rate=1e-6"))
    assert len(values) == 2
