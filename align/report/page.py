"""The document around the parts: one file that needs, and may load, nothing else."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources

from align.report import sections
from align.report.facts import Facts
from align.report.markup import text

_CONTENTS = {
    "held-out": "Before and after", "answers": "Answers", "curves": "Training", "guard": "Guard",
    "measures": "Measures", "trained-on": "Trained on what", "data": "Data health", "environment": "Environment",
    "cost": "Cost", "recipe": "Recipe",
}  # fmt: skip


def of_run(facts: Facts) -> str:
    """The page of one run."""
    parts = [
        sections.measured(facts), sections.answers(facts), sections.training(facts), sections.guard(facts),
        sections.measures(facts), sections.trained_on(facts), sections.data_health(facts),
        sections.environment(facts), sections.spent(facts), sections.recipe(facts),
    ]  # fmt: skip
    return document(facts.name, sections.head(facts), parts, _CONTENTS)


def document(title: str, head: str, parts: Sequence[str], contents: dict[str, str]) -> str:
    """A page of `parts` (markup; empty ones are left out) under a head, with links to them by their ids.

    Its policy lets run the script and style of this file alone, by their hashes, and nothing be loaded or sent.
    """
    style, script = _own("page.css"), _own("page.js")
    policy = (
        f"default-src 'none'; style-src 'sha256-{_hash(style)}'; script-src 'sha256-{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(
        f'<a href="#{name}">{text(label)}</a>'
        for name, label in contents.items()
        if any(part.startswith(f'<section id="{name}">') for part in parts)
    )
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">\n'
        f"<title>{text(title)}</title><style>{style}</style></head>\n"
        f'<body>{head}<nav aria-label="contents">{links}</nav>\n<main>{body}</main>\n'
        f"<script>{script}</script></body></html>\n"
    )


@cache
def _own(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text_: str) -> str:
    return base64.b64encode(hashlib.sha256(text_.encode()).digest()).decode()
