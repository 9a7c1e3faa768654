"""Recipes written to a file and loaded, for tests of what recipes may say."""

from __future__ import annotations

from pathlib import Path

from align import recipe
from align.recipe import Recipe


def loaded(folder: Path, text: str, *overrides: str) -> Recipe:
    """The recipe that a text and overrides make. Raises UserError."""
    file = folder / "r.yaml"
    file.write_text(text)
    return recipe.load(file, list(overrides))
