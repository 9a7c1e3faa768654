"""`align compare`: several runs side by side, as a page, a table for a terminal, and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from align.errors import printable
from align.report import curves, markup, page, sections, tables
from align.report.facts import Facts
from align.report.markup import number, passage, section, text
from align.report.plot import STYLES
from align.report.summary import summary

Runs = Sequence[tuple[str, Facts]]  # label -> what its files tell
MOST = STYLES  # runs whose lines can be told apart
_CONTENTS = {
    "runs": "Runs", "held-out": "Held-out rows", "recipes": "What differs", "curves": "Curves", "answers": "Answers",
    "measures": "Measures",
}  # fmt: skip


def labelled(runs: Sequence[Facts]) -> list[tuple[str, Facts]]:
    """Each run under the name of its folder, or under its path where names are not enough."""
    names = [Path(facts.run.path).resolve().name for facts in runs]
    return [
        (name if names.count(name) == 1 else str(facts.run.path), facts)
        for name, facts in zip(names, runs, strict=True)
    ]


def of_runs(runs: Runs) -> str:
    """The page."""
    title = "Comparison of " + ", ".join(label for label, _ in runs)
    head = f"<header><h1>{text(title)}</h1></header>"
    plots = sections.figures(curves.shared_plots(list(runs)))
    note = sections.bucket_note(max(facts.metrics.width for _, facts in runs)) if plots else ""
    parts = [
        section("runs", "Runs", _runs(runs)), section("held-out", "Held-out rows", _held_out(runs)),
        section("recipes", "What differs between their recipes", _differences(runs)),
        section("curves", "Curves", note, plots),
        section("answers", "Answers", *_answers(runs)),
        section("measures", "Measures of align evaluate", *_measures(runs)),
    ]  # fmt: skip
    return page.document(title, head, parts, _CONTENTS)


def table(runs: Runs) -> str:
    """For a terminal: cost and events, then a block of lines for each held-out set."""
    found = {label: summary(facts) for label, facts in runs}
    head = (
        f"{'':<28}{'steps':>8}{'loss':>10}{'tokens':>13}{'tokens/s':>10}{'seconds':>10}{'GiB':>8}{'events':>8}  state"
    )
    lines = [head, *(_short(label) + _cost_line(one) for label, one in found.items())]
    for name in _sets(runs):
        head = f"{'':<28}{'before':>10}{'after':>10}{'change':>10}{'KL to ref':>12}"
        lines += ["", f"{printable(name)}, nat/token", head]
        for label, one in found.items():
            own = one["held_out"].get(name, {"before": {}})
            latest = own.get("latest") or {}
            cells = (
                _cell(own["before"].get("logps"), 10, ".3f"), _cell(latest.get("logps"), 10, ".3f"),
                _cell(own.get("change"), 10, "+.3f"), _cell(latest.get("kl"), 12, ".4f"),
            )  # fmt: skip
            lines.append(_short(label) + "".join(cells))
    return "\n".join(lines)


def _cost_line(one: dict) -> str:
    cost, memory = one["cost"], one["cost"]["peak_memory_bytes"]
    cells = (
        _cell(one["steps"], 8, ","), _cell(one["metrics"].get("loss", {}).get("last"), 10, ".4f"),
        _cell(cost["tokens"], 13, ","), _cell(cost["tokens_per_second"], 10, ".0f"), _cell(cost["seconds"], 10, ".0f"),
        _cell(memory and memory / 2**30, 8, ".2f"), _cell(one["guard"]["events"], 8, ""),
        f"  {printable(one['state'])}",
    )  # fmt: skip
    return "".join(cells)


def _runs(runs: Runs) -> str:
    rows = []
    for label, facts in runs:
        one = summary(facts)
        cost, loss = one["cost"], one["metrics"].get("loss", {}).get("last")
        rows.append([
            text(label), text(one["objective"].get("name", "?")), text(one["model"]), text(one["state"]),
            number(one["steps"]), number(loss), number(cost["tokens"]), number(cost["tokens_per_second"]),
            number(cost["seconds"]), markup.memory(cost["peak_memory_bytes"]), number(one["guard"]["events"]),
        ])  # fmt: skip
    head = [
        "run", "objective", "model", "state", "steps", "last loss", "tokens", "tokens/s", "seconds",
        "peak memory", "guard's events",
    ]  # fmt: skip
    return markup.table(head, rows)


def _sets(runs: Runs) -> list[str]:
    """The held-out sets that any of the runs was measured on."""
    return list(dict.fromkeys(name for _, facts in runs for name in summary(facts)["held_out"]))


def _held_out(runs: Runs) -> str:
    parts = []
    for name in _sets(runs):
        found = {label: facts for label, facts in runs if name in summary(facts)["held_out"]}
        parts.append(f"<h3>{text(name)}</h3>{tables.held_out_of_runs(name, found)}")
    return f'<p class="note">{text(tables.HELD_OUT_NOTE)}</p>' + "\n".join(parts) if parts else ""


def _differences(runs: Runs) -> str:
    """The keys of the resolved recipes that have not the same value everywhere."""
    flat = {label: dict(_flat(facts.recipe)) for label, facts in runs}
    keys = dict.fromkeys(key for own in flat.values() for key in own)
    rows = []
    for key in keys:
        values = [own.get(key, "-") for own in flat.values()]
        if key != "output" and any(value != values[0] for value in values):
            rows.append([text(key), *map(number, values)])
    head = ["key", *(text(label) for label in flat)]
    return markup.table(head, rows) if rows else "<p>Nothing but the output.</p>"


def _flat(tree: object, path: str = "") -> list[tuple[str, object]]:
    if not isinstance(tree, dict) or not tree:
        return [(path, tree)]
    return [pair for name, value in tree.items() for pair in _flat(value, f"{path}.{name}" if path else str(name))]


def _answers(runs: Runs) -> list[str]:
    """The prompts that any run has answered, with every run's answer."""
    prompts = list(dict.fromkeys(prompt for _, facts in runs for prompt in facts.evaluation.get("prompts", [])))
    blocks = []
    for prompt in prompts:
        sides = ""
        for label, facts in runs:
            own = facts.evaluation
            if prompt in own.get("prompts", []):
                at = own["prompts"].index(prompt)
                kind = "answers_after" if own.get("answers_after") else "answers_before"
                when = "after" if kind == "answers_after" else "before"
                sides += f'<div><h3>{text(label)}, {when}</h3><p class="text">{passage(own[kind][at])}</p></div>'
        blocks.append(
            f'<article><h3>prompt</h3><p class="text">{passage(prompt)}</p><div class="sides">{sides}</div></article>'
        )
    return blocks


def _measures(runs: Runs) -> list[str]:
    """Each measure of the runs that have it."""
    names = dict.fromkeys(name for _, facts in runs for name in facts.evaluations.get("measures", {}))
    parts = []
    for name in names:
        each = {label: facts.evaluations.get("measures", {}).get(name) for label, facts in runs}
        found = {label: one for label, one in each.items() if one is not None}
        parts.append(f"<h3>{tables.spelt_measure(name)}</h3>{tables.measure_of_runs(found)}")
    return parts


def _short(label: str) -> str:
    label = printable(label)
    return f"{label if len(label) <= 26 else f'...{label[-23:]}':<28}"


def _cell(value: float | None, width: int, form: str) -> str:
    return f" {'-' if value is None else format(value, form)}".rjust(width)  # a wide number keeps off the one before
