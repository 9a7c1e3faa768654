"""The model card: README.md of a run folder and of its final weights, with front matter that the hub reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml

from align.errors import printable
from align.report.facts import Facts
from align.report.summary import cost, held_out
from align.run import write_text

_EMBEDDED = ("smollm2-135m-instruct", "HuggingFaceTB/SmolLM2-135M-Instruct")  # the name here, the one on the hub
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def write(facts: Facts) -> dict[str, str]:
    """Writes the card of the run folder, and gives that of its final weights, by its file name."""
    run = facts.run
    write_text(run.card, card(facts, run.final.name))
    return {run.card.name: card(facts, ".")}


def card(facts: Facts, weights: str) -> str:
    """The whole file; `weights` is where the final weights lie, seen from it."""
    parts = [
        f"---\n{yaml.safe_dump(_front_matter(facts), sort_keys=False, allow_unicode=True)}---\n\n# {_text(facts.name)}",
        _what(facts), "## Learned from", _sources(facts), "## Objective", _objective(facts), "## Held-out rows",
        _evaluation(facts), "## Guard", _guard(facts), "## How to load it", _loading(facts, weights),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: Facts) -> dict:
    """Only what the hub can check: a base or data set that it does not know is named in the text alone."""
    base, adapter = _base_on_hub(facts), _adapter(facts)
    paths = [source["path"] for source in _named_sources(facts, "data")]
    sets = [path for path in dict.fromkeys(paths) if _is_hub_id(path)]
    found: dict = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if base:
        found |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    if sets:
        found["datasets"] = sets
    return found | {"tags": ["align", "negative-examples", facts.objective]}


def _what(facts: Facts) -> str:
    base, adapter = facts.recipe.get("model", {}).get("path", "?"), _adapter(facts)
    how = f"a LoRA adapter of rank {adapter['rank']}" if adapter else "all weights"
    said = f"{how[0].upper()}{how[1:]} trained with the objective {_code(facts.objective)} on {_code(base)}"
    if base == _EMBEDDED[0]:
        said += f" (`{_EMBEDDED[1]}` from a 4-bit GGUF, so not to the bit the hub's weights)"
    spent = cost(facts)
    hours = f", {spent['seconds'] / 3600:.2f} h" if spent["seconds"] else ""
    environment = facts.environment
    versions = ", ".join(f"{name} {version}" for name, version in environment.get("packages", {}).items())
    return (
        f"{said}: {facts.metrics.last_step:,} optimiser steps, {spent['tokens']:,} tokens{hours}.\n\n"
        f"* weights at the start, SHA-256: {_code(environment.get('start_weights_sha256'))}\n"
        + "".join(
            f"* reference {_code(name)}, SHA-256: {_code(value)}\n"
            for name, value in environment.get("reference_weights_sha256", {}).items()
        )
        + f"* align {_text(environment.get('align'))}, commit {_code(environment.get('commit'))}; {_text(versions)}"
    )


def _sources(facts: Facts) -> str:
    """Where negatives and the rest came from, with counts by role."""
    counted, rows = facts.data.get("responses", {}), []
    for role, use in (("data", "learned from"), ("retain", "retained")):
        for source in _named_sources(facts, role):
            found = counted.get(source["path"] if role == "data" else f"{role}: {source['path']}", {})
            counts = [str(found.get(name, "-")) for name in ("rows", "negative", "positive", "sample")]
            rows.append([use, _code(source["path"]), str(source.get("weight", 1)), *counts])
    data = facts.data
    table = _table(["use", "source", "weight", "rows", "negatives", "positives", "samples"], rows)
    dropped = [f"* {_text(reason)}: {found['count']}" for reason, found in data.get("dropped", {}).items()]
    left = "\n\nLeft out, cut or odd:\n\n" + "\n".join(dropped) if dropped else ""
    return f"{table}\n\n{data.get('rows_read', '?')} rows read, {data.get('rows_used', '?')} used.{left}"


def _objective(facts: Facts) -> str:
    values = {**facts.recipe.get("objective", {}), "learning rate": facts.recipe.get("train", {}).get("learning_rate")}
    retain = facts.recipe.get("retain")
    values |= {"retain weight": retain.get("weight")} if retain else {}
    reference = facts.recipe.get("reference") or {}
    values |= {"reference": reference["policy"]} if reference.get("policy") else {}
    return _table(["parameter", "value"], ([_text(name), _code(value)] for name, value in values.items()))


def _evaluation(facts: Facts) -> str:
    rows = [
        [_text(name), _number(one["before"]["logps"]), _number((one["latest"] or {}).get("logps")),
         _number(one["change"], "+", one.get("change_interval")), _number((one["latest"] or {}).get("kl"))]
        for name, one in held_out(facts).items()
    ]  # fmt: skip
    if not rows:
        return "Nothing was measured."
    head = ["mean log-prob, nats a token", "before", "after", "change (95 % interval)", "KL to reference"]
    return _table(head, rows)


def _guard(facts: Facts) -> str:
    if not facts.events:
        return "No event was recorded."
    lines = []
    for event in facts.events[:20]:
        watch, action, said = (_text(event.get(key)) for key in ("watch", "action", "text"))
        lines.append(f"* step {event.get('step')}, {watch}: {action}. {said}")
    more = len(facts.events) - len(lines)
    return "\n".join(lines) + (f"\n* and {more} more" if more else "")


def _loading(facts: Facts, weights: str) -> str:
    base = _base_on_hub(facts) or str(facts.recipe.get("model", {}).get("path"))
    if facts.objective == "likra":
        code = (
            "from align.likelihood_ratio import LikelihoodRatioModel\n\n"
            f'model = LikelihoodRatioModel.from_pretrained("{weights}")'
        )
    elif _adapter(facts):
        code = (
            "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f"base = AutoModelForCausalLM.from_pretrained({base!r})\n"
            f'model = PeftModel.from_pretrained(base, "{weights}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{weights}")'
        )
    else:
        code = (
            "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
            f'model = AutoModelForCausalLM.from_pretrained("{weights}")\n'
            f'tokenizer = AutoTokenizer.from_pretrained("{weights}")'
        )
    note = ""
    if facts.recipe.get("data", {}).get("nat"):
        note = "\n\nThe text of `prompt_prefix.txt` belongs in front of the user's first message."
    return f"```python\n{code}\n```{note}"


def _base_on_hub(facts: Facts) -> str | None:
    path = str(facts.recipe.get("model", {}).get("path"))
    return _EMBEDDED[1] if path == _EMBEDDED[0] else path if _is_hub_id(path) else None


def _is_hub_id(path: str) -> bool:
    """Whether a path is owner/name, and no file or folder of this machine."""
    return bool(_HUB_ID.fullmatch(path)) and not path.startswith(".") and not Path(path).exists()


def _adapter(facts: Facts) -> dict | None:
    return facts.recipe.get("model", {}).get("adapter")


def _named_sources(facts: Facts, section: str) -> list[dict]:
    return (facts.recipe.get(section) or {}).get("sources") or []


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _number(value: float | None, sign: str = "", interval: list | None = None) -> str:
    if value is None:
        return "-"
    ends = f" ({interval[0]:+.3f} to {interval[1]:+.3f})" if interval else ""
    return f"{value:{sign}.3f}{ends}"


def _code(value: object) -> str:
    """Text from data as code in a table cell, where a backslash escapes nothing but a bar."""
    return "`" + printable(str(value))[:400].replace("`", "'").replace("|", "\\|") + "`"


def _text(value: object) -> str:
    """Text from data in Markdown: on one line, with nothing that opens a link, a tag, a table cell or code."""
    return re.sub(r"([\\`*_\[\]<>|&])", r"\\\1", printable(str(value))[:400])
