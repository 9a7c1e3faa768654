"""Entry of `accelerate launch align/train.py RECIPE [key=value ...]`: from a recipe to a finished run folder."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a file: put the project on the path in place of this folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from align.errors import UserError, run_main


def main(arguments: list[str] | None = None) -> None:
    """Trains what the recipe says. Raises UserError for what the user can mend."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0].startswith("-"):
        raise UserError("command line", "names no recipe", "accelerate launch align/train.py RECIPE [key=value ...]")
    from align import recipe

    loaded = recipe.load(arguments[0], arguments[1:])
    if loaded.rollouts is not None:
        raise UserError(arguments[0], "its rows are yet to be sampled", f"align iterate {arguments[0]}")
    makers = {"mining": "mine", "degrade": "negatives degrade", "repair": "negatives repair"}
    for section, command in makers.items():
        if getattr(loaded, section) is not None:
            fix = f"align {command} {arguments[0]}, then train on what it writes with another recipe"
            raise UserError(arguments[0], f"its section {section} makes rows, it does not train", fix)
    from align.job import train

    train(loaded)


if __name__ == "__main__":
    run_main(main)
