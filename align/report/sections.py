"""The parts of a run's page, in the order in which they are asked for: what came out, how it went, what it cost."""

from __future__ import annotations

from collections.abc import Sequence

from align.errors import shorten
from align.report import curves, markup, tables
from align.report.facts import Facts
from align.report.markup import facts as fact_list
from align.report.markup import number, passage, section, text
from align.report.plot import Plot
from align.report.series import BUCKETS, Metrics
from align.report.summary import cost, held_out

_EVENTS = 200  # most events in the table
_HINT = ' <span class="hint">Point at a plot, or go to it with Tab and use the arrow keys, to read values.</span>'


def head(facts: Facts) -> str:
    """Name, state, and the few numbers that are looked for first."""
    state = facts.progress.get("state", "finished" if facts.run.finished() else "unknown")
    why = facts.progress.get("why")
    steps = facts.progress.get("steps")
    done = number(facts.metrics.last_step) + (f" of {number(steps)}" if steps else "")
    tiles = [("optimiser steps", done)]
    tiles += [
        (f"{shorten(name)}: change, nats a token", number(one["change"], sign=True, decimals=3))
        for name, one in list(held_out(facts).items())[:4]
        if one["change"] is not None
    ]
    tiles.append(("events of the guard", f'<a href="#guard">{number(len(facts.events))}</a>'))
    model = facts.recipe.get("model", {})
    adapter = model.get("adapter") or {}
    how = f"LoRA of rank {number(adapter.get('rank'))}" if adapter else "all weights"
    said = f"<b>{text(facts.objective)}</b> on {text(model.get('path', '?'))}, {how}"
    said += f" · as of {text(facts.progress['written'])}" if "written" in facts.progress else ""
    return (
        f'<header><h1>{text(facts.name)} <span class="state {_state_class(state)}">{text(state)}</span></h1>'
        f"<p>{said}</p>{f'<p>{text(why)}</p>' if why else ''}{tile_list(tiles)}</header>"
    )


def tile_list(tiles: Sequence[tuple[str, str]]) -> str:
    """Large numbers (markup) under small names (text)."""
    items = "".join(f"<li><span>{text(name)}</span><strong>{value}</strong></li>" for name, value in tiles)
    return f'<ul class="tiles">{items}</ul>'


def measured(facts: Facts) -> str:
    parts = tables.before_after(facts)
    return section("held-out", "Before and after", parts, figures(curves.held_out_plots(facts)))


def answers(facts: Facts) -> str:
    """Prompts of held-out rows with the answer before and after, side by side."""
    given = facts.evaluation
    after = given.get("answers_after") or [None] * len(given.get("prompts", []))
    blocks = []
    for prompt, then, now in zip(given.get("prompts", []), given.get("answers_before", []), after, strict=False):
        later = f'<p class="text">{passage(now)}</p>' if now is not None else "<p>not yet</p>"
        blocks.append(
            f'<article><h3>prompt</h3><p class="text">{passage(prompt)}</p><div class="sides">'
            f'<div><h3>before</h3><p class="text">{passage(then)}</p></div>'
            f"<div><h3>after</h3>{later}</div></div></article>"
        )
    return section("answers", "Answers before and after", *blocks)


def training(facts: Facts) -> str:
    others = figures(curves.other_plots(facts))
    more = f"<details><summary>Other metrics</summary>{others}</details>" if others else ""
    return section(
        "curves", "Training", bucket_note(facts.metrics.width), figures(curves.main_plots(facts)), more,
        f"<details><summary>All metrics in numbers</summary>{_metric_table(facts.metrics)}</details>",
    )  # fmt: skip


def guard(facts: Facts) -> str:
    """What the watches saw, and what was done about it."""
    rows = [
        [number(index), number(event.get("step")), text(event.get("watch", "?")),
         number(event.get("value")), number(event.get("budget")), text(event.get("action", "?")),
         text(event.get("text", ""))]
        for index, event in enumerate(facts.events[:_EVENTS], 1)
    ]  # fmt: skip
    head_ = ["event", "step", "watch", "value", "budget", "action", "what happened"]
    told = markup.table(head_, rows) if rows else "<p>No event was recorded.</p>"
    left = len(facts.events) - _EVENTS
    more = f"<p>{number(left)} more events are in guard.jsonl.</p>" if left > 0 else ""
    return section("guard", "The guard", told, more, figures(curves.guard_plots(facts)))


def measures(facts: Facts) -> str:
    """What `align evaluate` has found."""
    found = facts.evaluations.get("measures") or {}
    parts = [f"<h3>{tables.spelt_measure(name)}</h3>{tables.measure(one)}" for name, one in found.items()]
    made = facts.evaluations.get("made")
    if parts and isinstance(made, dict):
        told = fact_list((name.replace("_", " "), number(value)) for name, value in made.items())
        parts.append(f"<h3>How they were made</h3>{told}")
    return section("measures", "Measures of align evaluate", *parts)


def trained_on(facts: Facts) -> str:
    """Model, objective and its parameters, data sources with the responses that were used of them."""
    recipe = facts.recipe
    objective = {name: value for name, value in recipe.get("objective", {}).items() if name != "name"}
    adapter = recipe.get("model", {}).get("adapter")
    said = [
        ("model", text(recipe.get("model", {}).get("path", "?"))),
        ("adapter", text(", ".join(f"{name} {value}" for name, value in adapter.items())) if adapter else "none"),
        ("objective", text(facts.objective)),
        *((f"objective.{name}", number(value)) for name, value in objective.items()),
        ("reference", text((recipe.get("reference") or {}).get("policy") or "none")),
    ]
    return section("trained-on", "What was trained on what", fact_list(said), sources(facts))


def sources(facts: Facts) -> str:
    """The data sources of the recipe, with counts by role where data.json has them."""
    counted, rows = facts.data.get("responses", {}), []
    for role in ("data", "retain", "eval"):
        for source in (facts.recipe.get(role) or {}).get("sources") or []:
            found = counted.get(source["path"] if role == "data" else f"{role}: {source['path']}", {})
            rows.append([
                text({"data": "learned from", "retain": "retained", "eval": "measured on"}[role]),
                text(source["path"]), text(source.get("split", "")), number(source.get("weight")),
                *(number(found.get(name)) for name in ("rows", "positive", "negative", "sample")),
            ])  # fmt: skip
    head_ = ["use", "source", "split", "weight", "rows", "positives", "negatives", "samples"]
    return markup.table(head_, rows) if rows else ""


def data_health(facts: Facts) -> str:
    data = facts.data
    said = [("rows read", number(data.get("rows_read"))), ("rows used", number(data.get("rows_used")))]
    said += [(f"epochs of {name}", number(value)) for name, value in data.get("epochs", {}).items()]
    rows = [
        [
            text(reason),
            number(found.get("count")),
            f'<p class="text">{passage(chr(10).join(map(str, found.get("first", []))))}</p>',
        ]
        for reason, found in data.get("dropped", {}).items()
    ]
    table = (
        markup.table(["left out, cut or odd", "count", "first places"], rows)
        if rows
        else "<p>Nothing was left out.</p>"
    )
    return section("data", "Data health", fact_list(said), table) if data else ""


def environment(facts: Facts) -> str:
    """Versions, commit, device, and the hashes that say who the run began with and was compared with."""
    found = dict(facts.environment)
    packages, references = found.pop("packages", {}), found.pop("reference_weights_sha256", {})
    said = [(name.replace("_", " "), number(value)) for name, value in found.items()]
    said += [(f"reference weights sha256, {name}", number(value)) for name, value in references.items()]
    said.append(("packages", text(", ".join(f"{name} {version}" for name, version in packages.items()))))
    return section("environment", "Environment and reference", fact_list(said)) if facts.environment else ""


def spent(facts: Facts) -> str:
    found = cost(facts)
    said = [
        ("tokens, all steps", number(found["tokens"])),
        ("tokens/s while training", number(found["tokens_per_second"])),
        ("seconds in training steps", number(found["step_seconds"])),
        ("seconds, measuring and all", number(found["seconds"])),
        ("peak memory of a process", markup.memory(found["peak_memory_bytes"])),
    ]
    return section("cost", "Cost", fact_list(said))


def recipe(facts: Facts) -> str:
    text_ = "\n".join(markup.text(line) for line in facts.recipe_text.splitlines())
    return section("recipe", "The resolved recipe", f'<pre tabindex="0">{text_}</pre>')


def figures(plots: Sequence[Plot]) -> str:
    return f'<div class="plots">{"".join(plot.figure() for plot in plots)}</div>' if plots else ""


def bucket_note(width: int) -> str:
    """What a point of a plot stands for."""
    if width == 1:
        return f'<p class="note">Every point is an optimiser step.{_HINT}</p>'
    return (
        f'<p class="note">Every point of these plots stands for up to {number(width)} steps (at most {BUCKETS} points '
        "a line): the line is their mean, the band reaches from the smallest to the largest value among them. The "
        f"numbers in tables are of single steps.{_HINT}</p>"
    )


def _metric_table(metrics: Metrics) -> str:
    rows = [
        [text(name), number(one.first[1], 6), number(one.last[1], 6), number(one.mean, 6), number(one.low, 6),
         number(one.high, 6), number(one.count), number(one.not_finite)]
        for name, one in metrics.items()
    ]  # fmt: skip
    return markup.table(["metric", "first", "last", "mean", "smallest", "largest", "steps", "not finite"], rows)


def _state_class(state: str) -> str:
    return state if state in ("finished", "running", "stopped") else "unknown"
