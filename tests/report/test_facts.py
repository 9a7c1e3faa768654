"""A run folder whose files are damaged, or are not a run's: one line that names the file."""

from __future__ import annotations

import pytest

from align.errors import UserError
from align.report import facts
from tests.report import worlds


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("recipe.yaml", "model: [", "recipe.yaml: is damaged"),
        ("recipe.yaml", "text", "no section model"),
        ("recipe.yaml", "model: {path: x}\ndata: rows.jsonl", "no section data"),
        ("evaluation.json", "[1]", "evaluation.json: is damaged: it holds no object"),
        ("environment.json", "{", "environment.json: is damaged"),
        ("guard.jsonl", "3\n", "guard.jsonl: is damaged: a line holds no object"),
        ("guard.jsonl", "{\n", "guard.jsonl: is damaged"),
    ],
)
def test_what_is_damaged_is_named(tmp_path, name, content, what):
    run = worlds.make(tmp_path / "run", steps=2)
    assert facts.read(run).objective == "npo"
    (run / name).write_text(content)
    with pytest.raises(UserError) as error:
        facts.read(run)
    assert what in str(error.value) and "\n" not in str(error.value)
