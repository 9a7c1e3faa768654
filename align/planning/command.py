"""`align plan`: prints a plan as a table for a person, or as JSON."""

from __future__ import annotations

import json

import torch

from align import precision
from align import recipe as recipes
from align.errors import UserError, shorten
from align.planning import advice, sharding
from align.planning.advice import Change
from align.planning.duration import clock, total
from align.planning.memory import CPU, CUDA, Setting
from align.planning.planner import Plan, Planner, memory_here
from align.precision import BF16

GB = 1e9
UNCHECKED = "memory of a GPU is computed, and has not been checked on hardware"


def main(
    path: str, overrides: list[str], *, gpus: int | None, gpu_memory: float | None, zero: str, probe: bool | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Plans a recipe and prints the plan. `probe` None: where the device that is planned for is here."""
    recipe = recipes.load(path, overrides)
    setting = setting_of(recipe.train.precision, gpus=gpus, gpu_memory=gpu_memory, zero=zero)
    is_here = (setting.device == CUDA) == torch.cuda.is_available()
    if probe and not is_here:
        raise UserError("--probe", "there is no GPU here to take the time on", "plan there, or use --no-probe")
    planner = Planner(recipe)
    plan = planner.plan(setting, probes=is_here if probe is None else probe)
    changes = advice.changes(planner, plan) if advice.verdict(plan) in ("tight", "does not fit") else []
    if as_json:
        print(json.dumps(as_dict(plan, changes), indent=2))
    else:
        print(table(plan, changes))


def setting_of(asked: str, *, gpus: int | None, gpu_memory: float | None, zero: str) -> Setting:
    """Where the run is planned for: the GPUs that are named, else this machine. Raises UserError."""
    stages, devices = sharding.read(zero)
    has_gpu = torch.cuda.is_available()
    device = CUDA if gpus or gpu_memory or devices or stages.stage or has_gpu else CPU
    ranks = gpus or devices or 1
    bf16 = precision.choose(asked).name == BF16
    if device == CUDA and not has_gpu and asked == "auto":
        bf16 = True  # as any GPU that is fast at it
    memory = round(gpu_memory * GB) if gpu_memory else None
    if memory is None and (device == CPU or has_gpu):
        memory = memory_here(device)
    return Setting(device, ranks, stages, bf16, memory)


def as_dict(plan: Plan, changes: list[Change]) -> dict:
    """The plan for a program: bytes, tokens, seconds."""
    setting, volume, memory, recipe = plan.setting, plan.volume, plan.memory, plan.recipe
    time = total(list(plan.times.values()))
    return {
        "recipe": recipe.name, "objective": recipe.objective["name"], "model": recipe.model.path,
        "layout": plan.layout,
        "device": {"kind": setting.device, "count": setting.ranks, "memory_bytes": setting.memory,
                   "zero_stage": setting.zero.stage, "precision": "bf16" if setting.bf16 else "fp32",
                   "checked_on_hardware": setting.device == CPU},
        "parameters": {"trained": plan.weights.trained, "frozen": plan.weights.frozen},
        "memory": {"parts_bytes": memory.parts(), "total_bytes": memory.total, "fullest": memory.fullest,
                   "moments_bytes": {moment: memory.at(moment) for moment in memory.passing}},
        "steps": volume.steps, "steps_looked_at": volume.looked_at,
        "a_step": {name.replace(" ", "_"): value / volume.looked_at for name, value in volume.sums.items()},
        "recompute_tokens": dict(volume.tokens_by_recompute),
        "seconds": {name: {"mean": span.seconds, "low": span.low, "high": span.high}
                    for name, span in {**plan.times, "total": time}.items()} if plan.times else None,
        "verdict": advice.verdict(plan),
        "changes": [{"change": change.text, "total_bytes": change.total} for change in changes],
        "notes": _notes(plan),
    }  # fmt: skip


def table(plan: Plan, changes: list[Change]) -> str:
    """The plan for a person."""
    setting, recipe, weights = plan.setting, plan.recipe, plan.weights
    zero = f", ZeRO-{setting.zero.stage}" if setting.zero.stage else ""
    how = f"{setting.ranks} x {setting.device}{zero}, {'bf16' if setting.bf16 else 'fp32'}, {plan.layout}"
    lines = [
        f"{recipe.name}: {recipe.objective['name']} on {shorten(recipe.model.path)} · {how}",
        _line("weights", f"{weights.trained:,} train, {weights.frozen:,} are frozen"),
        *_volume_lines(plan), "", *_memory_lines(plan), "", *_time_lines(plan), *_change_lines(plan, changes),
        *(f"note: {note}" for note in _notes(plan)),
    ]  # fmt: skip
    return "\n".join(lines)


def _line(name: str, text: str) -> str:
    return f"{name:<16}{text}"


def _volume_lines(plan: Plan) -> list[str]:
    volume, most = plan.volume, plan.recipe.train.tokens_per_device
    looked = "" if volume.looked_at == volume.steps else f" ({volume.looked_at} looked at)"
    each = {name: volume.a_step(name) for name in volume.sums}
    retain = f" and {each['retain prompts']:.1f} of the retain term" if each["retain prompts"] else ""
    prompts = f"{volume.steps:,} of {each['prompts']:.1f} prompts{retain}, {each['responses']:.1f} responses{looked}"
    tokens = f"{each['tokens']:,.0f} a step, {each['response tokens']:,.0f} of responses"
    again = volume.tokens_by_recompute
    modes = ", ".join(f"{mode} {count / again.total():.0%}" for mode, count in sorted(again.items()))
    against = {"with a prompt for each response": each["tokens with a prompt for each response"],
               "padded": each["tokens padded"], "in pairs": each["tokens in pairs"]}  # fmt: skip
    others = ", ".join(f"{count:,.0f} {how}" for how, count in against.items() if count)
    batches = f"{each['micro-batches']:.1f} a step on a device, of at most {most:,} tokens but for longer rows"
    return [
        _line("steps", prompts),
        _line("tokens", f"{tokens}; {each['tokens'] * volume.steps:,.0f} in all"),
        _line("prompts once", f"{each['unique tokens']:,.0f} tokens a step, where there would be {others}"),
        _line("micro-batches", f"{batches}; tokens computed again: {modes}"),
    ]


def _memory_lines(plan: Plan) -> list[str]:
    memory, setting = plan.memory, plan.setting
    lines = [f"memory of a device, in GB, at its fullest ({memory.fullest}):"]
    lines += [f"  {name:<26}{size / GB:>8.2f}" for name, size in memory.parts().items()]
    end = {"fits": "fits", "tight": "may fit: a plan can be 15 % off", "does not fit": "does not fit"}
    verdict = advice.verdict(plan)
    of = (
        f"   of {setting.memory / GB:.1f}: {end[verdict]}"
        if setting.memory
        else "   (--gpu-memory says whether it fits)"
    )
    lines.append(f"  {'total':<26}{memory.total / GB:>8.2f}{of}")
    others = [f"{moment} {memory.at(moment) / GB:.2f}" for moment in memory.passing if moment != memory.fullest]
    return lines + ([f"  at other times: {', '.join(others)}"] if others else [])


def _time_lines(plan: Plan) -> list[str]:
    if not plan.times:
        return [_line("time", "not taken (--probe takes it, on the device itself)")]
    whole = total(list(plan.times.values()))
    lines = [_line("time", f"{clock(whole.seconds)} ({clock(whole.low)} to {clock(whole.high)}), loading not counted")]
    return lines + [f"  {name:<32}{clock(span.seconds)}" for name, span in plan.times.items()]


def _change_lines(plan: Plan, changes: list[Change]) -> list[str]:
    if not changes:
        return []
    memory = plan.setting.memory
    lines = ["", "what would lower it, each by itself (GB):"]
    for change in changes:
        is_safe, is_enough = (change.total * factor <= memory for factor in (1 + advice.ERROR, 1))
        enough = "fits" if is_safe else "may fit" if is_enough else "not enough"
        lines.append(f"  {change.text:<36}{change.total / GB:>8.2f}   {enough}")
    return lines


def _notes(plan: Plan) -> list[str]:
    notes = list(plan.notes)
    if plan.setting.device == CUDA:
        notes.append(UNCHECKED)
        if plan.setting.ranks > 1 and plan.times:
            notes.append("time between devices is not counted")
    return notes
