"""A training job: from a checked recipe to a finished run folder.

`training` is the job in the order a reader would do it. What it is made of comes from the recipe: `parts` (arguments,
rows, layout, steps, what scores them), `policy` and `references` (which models), `callbacks` (what watches the loop),
`folder` (what is written beside the weights). `reference_build` fills the store of references ahead of a job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.job.training import train as train


def __getattr__(name: str) -> object:
    """`train`, imported when it is asked for: who wants one part of a job needs no trainer."""
    if name == "train":
        from align.job.training import train

        return train
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
