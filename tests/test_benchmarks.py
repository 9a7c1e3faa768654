"""The benchmark counts what it says it counts, gives both sides the same rows, and refuses to compare unlike runs."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from align import models, recipe
from align.data import layout as layouts
from align.data.examples import Example
from align.data.plan import StepPlan
from align.data.tokenize import TokenizedResponse, TokenizedRow, encode_prompt
from align.recipe import Adapter, Model
from benchmarks import cases, flops, rounds, workload
from benchmarks.workload import Lengths, Setup
from tests import commands, tiny

SPEED = [sys.executable, "benchmarks/speed.py"]
BACKBONE = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32  # q o, k v, MLP, norms; the last norm


def row_of(prompt: int, *responses: int) -> TokenizedRow:
    answers = tuple(TokenizedResponse((1,) * length, 1) for length in responses)
    return TokenizedRow((1,) * prompt, answers, Example("", (), "", ""))


@pytest.fixture
def setup(tiny_model, tmp_path) -> Setup:
    """A small setup on the prepared tiny model."""
    model = workload.prepare_model(str(tiny_model), tmp_path / "model")
    lengths = {"prompt": Lengths(60, 0.5, 16, 100), "response": Lengths(20, 0.5, 8, 60)}
    return Setup(model, responses=3, prompts_per_step=2, steps=3, **lengths)


# Useful operations


@pytest.mark.parametrize("tied", [False, True])
def test_the_size_of_a_model_is_its_layers_without_embedding_and_head(tied):
    size = flops.ModelSize.of(tiny.llama(tie_word_embeddings=tied))
    assert size == flops.ModelSize(backbone=BACKBONE, adapter=0, head=259 * 32, attention=2 * 32)


def test_lora_matrices_are_counted_apart():
    model = models.add_adapter(tiny.llama(), Adapter(rank=4), seed=0)
    adapter = 2 * 4 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert flops.ModelSize.of(model) == flops.ModelSize(BACKBONE, adapter, 259 * 32, 2 * 32)


def test_attention_pairs_are_those_of_the_tree():
    row = row_of(3, 2, 4)
    owner = [0, 0, 0, 1, 2, 2, 2]  # 0 the prompt, then the responses without their last tokens
    sees = [one >= other and owner[other] in (0, owner[one]) for one in range(7) for other in range(7)]
    assert flops.unique_tokens(row) == 7
    assert flops.attention_pairs(row) == sum(sees) == 25


def test_training_flops_by_hand():
    size = flops.ModelSize(backbone=100, adapter=0, head=1000, attention=10)
    assert flops.training_flops([row_of(3, 2, 4)], size) == 7 * 600 + 6 * 6000 + 12 * 10 * 25
    assert flops.training_flops([row_of(3, 2, 4)] * 2, size) == 2 * (7 * 600 + 6 * 6000 + 12 * 10 * 25)


def test_frozen_weights_have_no_gradient_to_compute():
    size = flops.ModelSize(backbone=100, adapter=5, head=1000, attention=10)
    assert flops.training_flops([row_of(3, 2, 4)], size) == 7 * (400 + 30) + 6 * 4000 + 12 * 10 * 25


def test_dense_operations_are_what_torch_counts():
    model, ids = tiny.llama(), torch.arange(7)[None]
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids).logits.sum().backward()
    products = counter.get_flop_counts()["Global"]
    counted = sum(products[op] for op in (torch.ops.aten.mm, torch.ops.aten.addmm) if op in products)
    norms = 5 * 32
    assert counted == 6 * 7 * (BACKBONE - norms + 259 * 32)


# Lengths and texts


def test_lengths_have_the_median_and_the_width_they_are_given():
    drawn = Lengths(160, 0.7, 1, 100_000).draw(2000, random.Random(0))
    assert statistics.median(drawn) == pytest.approx(160, rel=0.01)
    assert statistics.quantiles(drawn, n=100)[83] == pytest.approx(160 * math.exp(0.7 * 0.994), rel=0.02)


def test_a_few_lengths_have_the_median_too():
    for seed in range(20):
        assert statistics.median(Lengths(160, 0.7, 16, 768).draw(12, random.Random(seed))) == pytest.approx(
            160, rel=0.2
        )


def test_lengths_are_clipped_shuffled_and_depend_on_the_seed():
    lengths = Lengths(160, 0.7, 100, 200)
    drawn = lengths.draw(100, random.Random(0))
    assert (min(drawn), max(drawn)) == (100, 200)
    assert drawn != sorted(drawn)
    assert drawn == lengths.draw(100, random.Random(0)) != lengths.draw(100, random.Random(1))


def test_texts_take_the_tokens_asked_for():
    writer = workload.Writer(tiny.tokenizer(), seed=0)
    encode = tiny.tokenizer()
    for wanted in (20, 57, 200):
        assert len(encode(f" {writer.text(wanted)}")["input_ids"]) in (wanted, wanted - 1)
    assert writer.text(-5)  # at least a word
    assert len(set(workload.words())) == len(workload.words()) > 1000


# What both sides are given


def test_a_template_writes_nothing_behind_an_answer(tiny_model, setup):
    own, trimmed = (models.load_tokenizer(Model(path=str(path))) for path in (tiny_model, setup.model))
    talk = [{"role": "user", "content": "Hi "}, {"role": "assistant", "content": " Ho"}]
    assert own.apply_chat_template(talk, tokenize=False) == trimmed.apply_chat_template(talk, tokenize=False) + "\n"
    assert encode_prompt(own, "Hi ") == encode_prompt(trimmed, "Hi ")


def test_our_plan_meets_the_rows_in_the_order_of_the_pairs(setup, tmp_path):
    work = workload.make(setup, tmp_path / "case", rows=11)
    options = recipe.load(work.recipe).train
    prompts = [json.loads(line)["prompt"] for line in (tmp_path / "case" / "rows.jsonl").read_text().splitlines()]
    plan = StepPlan(
        [1.0] * len(prompts), prompts_per_step=options.prompts_per_step, epochs=1, max_steps=options.max_steps,
        seed=options.seed,
    )  # fmt: skip
    visited = [prompts[index] for step in range(len(plan)) for index in plan.rows(step)]
    assert visited == [row.example.prompt for step in work.steps for row in step]
    pairs = [json.loads(line) for line in work.pairs.read_text().splitlines()]
    assert [pair["prompt"][0]["content"] for pair in pairs] == [prompt for prompt in visited for _ in range(2)]
    assert len(set(prompts)) == 11


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_largest_row_fits_a_device(setup, tmp_path, layout):
    long = {"prompt": Lengths(250, 0.0, 1, 250), "response": Lengths(10, 0.0, 1, 10), "responses": 64}
    work = workload.make(dataclasses.replace(setup, layout=layout, **long), tmp_path / layout)
    padded = max(len(row.responses) * max(row.lengths()) for step in work.steps for row in step)
    assert padded > Setup.tokens_per_device > layouts.size(work.steps[0][:1], "packed")
    asked = padded // 8 if layout == "padded" else Setup.tokens_per_device
    assert recipe.load(work.recipe).train.tokens_per_device == asked


@pytest.mark.parametrize(("responses", "prompts", "batch"), [(2, 8, 4), (2, 6, 3), (4, 4, 4), (8, 4, 4), (16, 1, 3)])
def test_trl_batches_are_equal_and_as_large_as_may_be(tmp_path, responses, prompts, batch):
    setup = Setup(tmp_path, responses=responses, prompts_per_step=prompts, most_pairs=4)
    assert setup.pairs_per_batch == batch
    assert setup.pairs_per_step % batch == 0


# What is refused, and what is made of the figures


def losses(ours: list[float], trl: list[float]) -> dict:
    return {"ours": {"losses": ours}, "trl": {"losses": trl}}


def test_unlike_losses_are_refused():
    cases.check_losses("k2", losses([math.log(2), 0.68], [math.log(2), 0.6805]), "fp32")
    with pytest.raises(rounds.Disagreement, match="should be the same"):
        cases.check_losses("k2", losses([math.log(2), 0.68], [math.log(2), 0.69]), "fp32")
    with pytest.raises(rounds.Disagreement, match="ln 2"):
        cases.check_losses("k2", losses([0.6, 0.68], [0.6, 0.68]), "fp32")


def test_unlike_log_probs_of_the_reference_are_refused():
    units = {"ours": [{"sums": [[-100.0, -50.0]]}], "trl": [{"sums": [[-100.0, -50.001]]}]}
    cases.check_sums(units, 1e-4)
    with pytest.raises(rounds.Disagreement):
        cases.check_sums(units, 1e-6)


def test_warm_up_does_not_count():
    units = [{"seconds": seconds} for seconds in (100.0, 50.0, 2.0, 1.0, 4.0)]
    found = rounds.rates(units, responses=16)
    assert found["responses_per_second"] == 8
    assert found["seconds"] == {"median": 2, "min": 1, "max": 4, "all": [2, 1, 4]}


# The command


@pytest.fixture(scope="module")
def measured(tiny_model) -> dict:
    options = ["--quick", "--case", "k2", "k4", "reference", "--learning-rate", "1e-3"]
    result = commands.run(SPEED, *options, "--model", tiny_model, timeout=500)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "k4 4/4 trl" in result.stderr
    return json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["k2", "k4"])
def test_both_sides_train_alike(measured, case):
    found = measured["cases"][case]
    ours, trl = found["ours"]["losses"], found["trl"]["losses"]
    assert ours == pytest.approx(trl, abs=1e-3)
    assert ours[0] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(ours[-1] - ours[0]) > 0.01, "nothing was learned, so their agreement means nothing"


@pytest.mark.slow
def test_ratios_are_quotients_of_medians(measured):
    for case in ("k2", "k4", "reference"):
        found = measured["cases"][case]
        ours, trl = found["ours"], found["trl"]
        assert found["ratio"]["responses_per_second"] == pytest.approx(
            trl["seconds"]["median"] / ours["seconds"]["median"]
        )
        assert found["ratio"]["peak_memory"] == pytest.approx(ours["peak_memory_bytes"] / trl["peak_memory_bytes"])
        for side in (ours, trl):
            assert side["seconds"]["median"] == pytest.approx(statistics.median(side["seconds"]["all"]))
            responses = found["prompts_a_step"] * found["responses_a_prompt"]
            assert side["responses_per_second"] * side["seconds"]["median"] == pytest.approx(responses)
            assert side["peak_memory_bytes"] > 100e6


@pytest.mark.slow
def test_shares_of_the_peak_and_forwarded_tokens(measured):
    for case in ("k2", "k4"):
        ours, trl = (measured["cases"][case][side] for side in ("ours", "trl"))
        assert 0 < trl["mfu"] < 1
        assert 0 < ours["mfu"] < 1
        assert 1 < ours["tokens_forwarded_per_response_token"] < trl["tokens_forwarded_per_response_token"]
    assert measured["peak_gflops_per_second"] > 1
    assert measured["machine"]["packages"].keys() >= {"torch", "transformers", "trl"}
    assert measured["machine"]["precision"] == "fp32"


@pytest.mark.slow
def test_the_profile_names_operators(tiny_model):
    result = commands.run(SPEED, "--quick", "--profile", "--model", tiny_model)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "Self CPU" in result.stdout
    assert "aten::mm" in result.stdout
