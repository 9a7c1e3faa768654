"""The watchdog over what negatives do to everything else: on by default, cheap, and it acts before anything is lost.

`options` and `checks` are its section of a recipe, `setup` makes it for a run, `watchdog` meets the loop. `pace` says
when is measured, `rows` and `watches` what, `ladder` what is done about an alarm, `anchor` is one of these actions.
As long as no budget is exceeded nothing of the run is changed, to the last bit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.guard.options import Guard as Guard

if TYPE_CHECKING:
    from align.guard.watchdog import Watchdog as Watchdog


def __getattr__(name: str) -> object:
    """`Watchdog`, imported when it is asked for: reading a recipe needs no transformers."""
    if name == "Watchdog":
        from align.guard.watchdog import Watchdog

        return Watchdog
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
