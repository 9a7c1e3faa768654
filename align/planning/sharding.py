"""What of weights, gradients and optimiser state lies on each device: DDP, or a stage of DeepSpeed's ZeRO.

ZeRO (Rajbhandari et al., 2020, https://arxiv.org/abs/1910.02054): stage 1 deals the optimiser's state to the devices,
stage 2 the gradients too, stage 3 the weights too. The buffers are DeepSpeed 0.19's.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import yaml

from align.errors import UserError, shorten

FP32 = 4  # bytes

# Bytes a trained weight that optimisers of transformers keep beside it; any other is counted as AdamW.
OPTIMISER_BYTES = {"adamw_torch": 8, "adamw_torch_fused": 8, "sgd": 0, "rmsprop": 4, "adagrad": 4}


@dataclass(frozen=True)
class Zero:
    """A stage, and what of DeepSpeed's settings decides memory (elements; its defaults)."""

    stage: int = 0  # 0: every device holds everything (DDP, or one device)
    reduce_bucket_size: int = 500_000_000
    overlap_comm: bool = False  # two buckets in place of one
    max_live_parameters: int = 1_000_000_000  # of stage 3, gathered at a time
    offload_optimizer: bool = False  # the optimiser's state lies in host memory
    offload_param: bool = False  # stage 3: so does each device's share of the weights


@dataclass(frozen=True)
class Weights:
    """How many weights a policy has, and their bytes as they are loaded."""

    trained: int
    frozen: int
    trained_bytes: int
    frozen_bytes: int

    @property
    def total(self) -> int:
        return self.trained + self.frozen


_SETTINGS = {  # key of `zero_optimization` -> field of Zero
    "stage": "stage", "reduce_bucket_size": "reduce_bucket_size", "overlap_comm": "overlap_comm",
    "stage3_max_live_parameters": "max_live_parameters", "max_live_parameters": "max_live_parameters",
}  # fmt: skip
_NO_MEMORY = {"contiguous_gradients", "stage3_gather_16bit_weights_on_model_save", "round_robin_gradients"}


def read(text: str) -> tuple[Zero, int | None]:
    """What `--zero` says: a stage, a DeepSpeed or an accelerate file; and the number of devices that the file names.

    Raises UserError if it is none of these, or says something whose memory is not known here.
    """
    if text in ("0", "1", "2", "3"):
        return _sound(Zero(int(text), overlap_comm=text == "3")), None
    file = Path(text)
    config = _load(file)
    devices = config.get("num_processes")
    devices = None if devices is None else _whole(text, "num_processes", devices)
    kind = str(config.get("distributed_type", "DEEPSPEED")).upper()
    if kind in ("MULTI_GPU", "MULTI_CPU", "NO"):
        return Zero(), devices
    if kind != "DEEPSPEED":
        raise UserError(text, f"distributed_type {shorten(kind)} cannot be planned", "use DDP or DeepSpeed ZeRO")
    own = config.get("deepspeed_config") or {}
    if "deepspeed_config_file" in own:
        config = _load(Path(own["deepspeed_config_file"]))
    elif "zero_stage" in own:
        stage = _whole(text, "zero_stage", own["zero_stage"])
        devices_on = {name: own.get(f"{name}_device") == "cpu" for name in ("offload_optimizer", "offload_param")}
        return _sound(Zero(stage, overlap_comm=stage == 3, **devices_on)), devices
    return _of_deepspeed(text, config), devices


def _load(file: Path) -> dict:
    try:
        content = file.read_text(encoding="utf-8")
        config = json.loads(content) if file.suffix == ".json" else yaml.safe_load(content)
    except (OSError, UnicodeDecodeError, ValueError, yaml.YAMLError) as error:
        what = f"cannot be read: {shorten(error, 120)}"
        raise UserError(shorten(str(file), 160), what, "a stage (0 to 3), or a file as in launch/") from None
    if not isinstance(config, dict):
        raise UserError(shorten(str(file), 160), "holds no settings", "a stage (0 to 3), or a file as in launch/")
    return config


def _whole(where: str, key: str, value: object) -> int:
    """A whole number of a file, also one that is written as text or as 5e8."""
    try:
        return int(float(value))
    except (TypeError, ValueError, OverflowError):
        raise UserError(shorten(where, 160), f"{key} is {shorten(value)}, no number", "mend it") from None


def _of_deepspeed(where: str, config: dict) -> Zero:
    given = config.get("zero_optimization") or {}
    if not isinstance(given, dict):
        raise UserError(shorten(where, 160), f"zero_optimization is {shorten(given)}", "give its settings")
    fields, unknown = {"overlap_comm": given.get("stage") == 3}, []
    for key, value in given.items():
        if key in ("offload_optimizer", "offload_param"):
            fields[key] = (value or {}).get("device", "none") != "none"
        elif key in _SETTINGS and value != "auto":
            fields[_SETTINGS[key]] = value if isinstance(value, bool) else _whole(where, key, value)
        elif key not in _NO_MEMORY and value != "auto":
            unknown.append(key)
    if unknown:
        what = f"what {', '.join(sorted(unknown))} does to memory is not known here"
        raise UserError(shorten(where, 160), what, "leave it out to plan, or plan with --zero STAGE")
    return _sound(Zero(**fields))


def _sound(zero: Zero) -> Zero:
    if zero.stage not in range(4):
        raise UserError("--zero", f"ZeRO has no stage {zero.stage}", "0, 1, 2 or 3")
    return zero


def states(weights: Weights, zero: Zero, ranks: int, *, bf16: bool, optimiser: int) -> dict[str, int]:
    """Bytes a device holds for `weights`, `gradients`, `optimiser` and `buffers` of communication.

    `optimiser`: bytes of its state for each trained weight. Under ZeRO the whole policy has the type of the run's
    products (DeepSpeed casts it), and each device holds a float32 copy of its share of what trains.
    """
    if zero.stage == 0:
        buckets = weights.trained * FP32 if ranks > 1 else 0  # DDP's copy of the gradients, to send
        return {
            "weights": weights.trained_bytes + weights.frozen_bytes, "gradients": weights.trained * FP32,
            "optimiser": weights.trained * optimiser, "buffers": buckets,
        }  # fmt: skip
    each, trained = (2 if bf16 else FP32), weights.trained
    held = weights.total * each
    if zero.stage == 3:
        share = 0 if zero.offload_param else -(-held // ranks)
        held = share + min(weights.total, zero.max_live_parameters) * each
    whole = trained if zero.stage == 1 else -(-trained // ranks)
    buckets = 2 if zero.overlap_comm and zero.stage < 3 else 1
    own = -(-trained // ranks)
    return {
        "weights": held,
        "gradients": (whole + (own if zero.stage == 1 else 0)) * each,
        "optimiser": 0 if zero.offload_optimizer else own * (FP32 + optimiser),
        "buffers": buckets * zero.reduce_bucket_size * each,
    }


def stages_above(zero: Zero) -> list[Zero]:
    """The same settings with more dealt out."""
    return [dataclasses.replace(zero, stage=stage) for stage in range(max(zero.stage + 1, 2), 4)]
