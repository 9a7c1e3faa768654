"""The figures of a run that are told everywhere: at the top of its page, in comparisons, in the model card."""

from __future__ import annotations

from collections import Counter

from align.report.facts import Facts


def summary(facts: Facts) -> dict:
    """What `align compare --json` prints of a run; numbers are those of the files, sums and differences of them."""
    progress = facts.progress
    return {
        "run": str(facts.run.path),
        "name": facts.name,
        "objective": facts.recipe.get("objective", {}),
        "model": facts.recipe.get("model", {}).get("path"),
        "state": progress.get("state", "finished" if facts.run.finished() else "unknown"),
        "steps": facts.metrics.last_step,
        "held_out": held_out(facts),
        "metrics": {name: _figures(series) for name, series in facts.metrics.items()},
        "measures": facts.evaluations.get("measures", {}),
        "guard": {"events": len(facts.events), "actions": dict(Counter(one.get("action") for one in facts.events))},
        "cost": cost(facts),
        "start_weights_sha256": facts.environment.get("start_weights_sha256"),
    }


def cost(facts: Facts) -> dict:
    """Tokens of all steps; seconds of training steps, and of the whole run; the most memory of a process."""
    metrics, progress = facts.metrics, facts.progress
    return {
        "tokens": metrics.total_tokens,
        "step_seconds": metrics.step_seconds,
        "tokens_per_second": metrics.total_tokens / metrics.step_seconds if metrics.step_seconds else None,
        "seconds": progress.get("seconds"),
        "peak_memory_bytes": progress.get("peak_memory_bytes"),
    }


def held_out(facts: Facts) -> dict[str, dict]:
    """{set: role, before, latest, the step of the latest (None: after training), change of the mean log-prob}."""
    found = {}
    for step, measured in facts.held_out:
        for name, now in measured.items():
            if step == 0:
                found[name] = {"role": now["role"], "before": now, "latest": None, "step": None, "change": None}
            elif name in found:
                change = now["logps"] - found[name]["before"]["logps"]
                found[name] |= {"latest": now, "step": step, "change": change}
                if "change_interval" in now:
                    found[name]["change_interval"] = now["change_interval"]
    return found


def _figures(series) -> dict:
    """A metric in a few numbers."""
    return {
        "first": series.first[1],
        "last": series.last[1],
        "last_step": series.last[0],
        "low": series.low,
        "high": series.high,
        "mean": series.mean,
        "steps": series.count,
        "not_finite": series.not_finite,
    }
