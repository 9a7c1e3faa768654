"""What lies on a device under each stage, by hand, and what the files in `launch/` say."""

from __future__ import annotations

import json

import pytest

from align.errors import UserError
from align.planning import sharding
from align.planning.sharding import Weights, Zero

FULL = Weights(trained=1000, frozen=0, trained_bytes=4000, frozen_bytes=0)
LORA = Weights(trained=10, frozen=1000, trained_bytes=40, frozen_bytes=2000)
ADAM = {"bf16": True, "optimiser": 8}


def test_one_device_and_ddp():
    assert sharding.states(FULL, Zero(), 1, **ADAM) == {
        "weights": 4000, "gradients": 4000, "optimiser": 8000, "buffers": 0,
    }  # fmt: skip
    assert sharding.states(LORA, Zero(), 4, **ADAM) == {
        "weights": 2040, "gradients": 40, "optimiser": 80, "buffers": 40,
    }  # fmt: skip


def test_stages_follow_the_papers_sums():
    """ZeRO, section 3: of 2 + 2 + 12 bytes a weight, the 12, the 14 and the 16 are divided by the devices."""
    bucket = {"reduce_bucket_size": 0, "max_live_parameters": 0}
    for stage, each in ((1, 2 + 2 + 12 / 8), (2, 2 + 14 / 8), (3, 16 / 8)):
        found = sharding.states(FULL, Zero(stage, **bucket), 8, **ADAM)
        own = 2 * 1000 / 8 if stage == 1 else 0  # its share of the reduced gradients, beside the whole ones
        assert sum(found.values()) - own == 1000 * each


def test_stage_3_gathers_no_more_than_it_may():
    gathered = [sharding.states(FULL, Zero(3, max_live_parameters=n), 4, **ADAM)["weights"] for n in (0, 300, 5000)]
    assert gathered == [500, 500 + 600, 500 + 2000]


def test_buckets_and_offloading():
    two = sharding.states(FULL, Zero(2, reduce_bucket_size=70, overlap_comm=True), 4, **ADAM)
    assert two["buffers"] == 2 * 70 * 2
    off = sharding.states(FULL, Zero(3, offload_optimizer=True, offload_param=True, max_live_parameters=10), 4, **ADAM)
    assert (off["optimiser"], off["weights"]) == (0, 20)
    fp32 = sharding.states(FULL, Zero(1, reduce_bucket_size=0), 4, bf16=False, optimiser=8)
    assert fp32 == {"weights": 4000, "gradients": 5000, "optimiser": 250 * 12, "buffers": 0}


@pytest.mark.parametrize(
    ("file", "zero", "devices"),
    [
        ("ddp.yaml", Zero(), 8),
        ("zero2.yaml", Zero(2, overlap_comm=True), 8),
        ("zero3.yaml", Zero(3, overlap_comm=True), 8),
        ("zero3.json", Zero(3, overlap_comm=True), None),
    ],
)
def test_shipped_files(file, zero, devices, root, monkeypatch):
    monkeypatch.chdir(root)
    assert sharding.read(f"launch/{file}") == (zero, devices)


def test_settings_of_deepspeed(tmp_path):
    file = tmp_path / "own.json"
    settings = {"stage": 3, "stage3_max_live_parameters": 1e8, "reduce_bucket_size": "auto",
                "offload_optimizer": {"device": "cpu"}, "overlap_comm": False}  # fmt: skip
    file.write_text(json.dumps({"zero_optimization": settings}))
    assert sharding.read(str(file))[0] == Zero(3, max_live_parameters=100_000_000, offload_optimizer=True)


@pytest.mark.parametrize(
    ("name", "text", "what"),
    [
        ("own.json", '{"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 8}}', "zero_hpz_partition_size"),
        ("own.json", '{"zero_optimization": {"stage": 5}}', "no stage 5"),
        ("own.json", '{"zero_optimization": {"stage": "two"}}', "stage is two, no number"),
        ("own.json", '{"zero_optimization": [3]}', "zero_optimization is"),
        ("own.yaml", "num_processes: many", "num_processes is many, no number"),
        ("own.json", "{", "cannot be read"),
        ("own.yaml", "distributed_type: FSDP", "FSDP cannot be planned"),
        ("own.yaml", "[1]", "holds no settings"),
    ],
)
def test_what_cannot_be_planned_is_refused(tmp_path, name, text, what):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=what):
        sharding.read(str(tmp_path / name))


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match="cannot be read"):
        sharding.read("nowhere.yaml")
