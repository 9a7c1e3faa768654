"""Learning curves: multiple-choice accuracy at the snapshots of runs, over the number of prompts they had learned from.

`train.snapshots: true` keeps what a run has trained after 1, 2, 4, 8, ... steps. Under a constant learning rate a
snapshot is what a run on that many prompts would have ended with. The two heads of a `likra` run learn without each
other, so one run has three curves: the positive head (positives alone), the ratio to the base (negatives alone) and the
ratio (both).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from align.data.examples import Example
from align.data.ledger import Ledger
from align.errors import UserError, printable, shorten
from align.evaluation import multiple_choice, subject
from align.evaluation.multiple_choice import SUM, Options
from align.evaluation.subject import BASE
from align.run import RunFolder

_IMAGES = (".png", ".svg")
_MARKERS, _DASHES = "os^Dv*P", ("-", "--", "-.", ":", (0, (5, 1, 1, 1)))  # lines differ in more than colour


def places(run: str | Path) -> Iterator[tuple[int, Path]]:
    """(prompts learned from, folder of the weights) of each snapshot of a run. Raises UserError if there is none."""
    folder = RunFolder(run)
    if not folder.snapshot_prompts():
        what = "has no snapshots to draw a curve of"
        raise UserError(shorten(str(run), 160), what, "run its recipe with train.snapshots=true")
    for prompts in folder.snapshot_prompts():
        yield prompts, folder.snapshot(prompts)


def measure(runs: Sequence[str], examples: Sequence[Example], ledger: Ledger) -> dict[str, dict[int, dict]]:
    """{run: {prompts: as `multiple_choice.measure`}}; at 0 prompts is the base, which each run's model scores once.

    Counts in the ledger the questions that a run could not score, and how many all of them could.
    """
    curves, used = {}, []
    for run in runs:
        base, points, own = None, {}, Ledger()
        for prompts, folder in places(run):
            models = subject.load(run, folder)
            if base is None:
                scored = multiple_choice.score(models, examples, own)
                base = scored.logps[BASE]
            else:
                scored = multiple_choice.score(models.without(BASE), examples, Ledger())
            whole = Options({**scored.logps, BASE: base}, scored.lengths, scored.is_right, scored.places)
            points.setdefault(0, multiple_choice.measure(whole, {BASE: models.scores[BASE]}))
            points[prompts] = multiple_choice.measure(whole, models.scores)
        curves[run] = points
        used.append(own.used)
        ledger.merge(own, f"{run}: ")
    ledger.used = min(used)
    return curves


def table(curves: dict[str, dict[int, dict]], how: str = SUM) -> str:
    """The curves for a terminal: a line for each run and score, a column for each number of prompts."""
    lines = []
    for run, points in curves.items():
        names = list(dict.fromkeys(name for found in points.values() for name in found if name != BASE))
        lines.append(f"{printable(run)}: accuracy by {how}, after so many prompts (0: the base)")
        lines.append(" " * 16 + "".join(f"{prompts:>7}" for prompts in points))
        for name in names:
            cells = [points[prompts].get(name, points[0][BASE])[how]["accuracy"] for prompts in points]
            lines.append(f"{name:<16}" + "".join(f"{value:>7.3f}" for value in cells))
        lines.append("")
    return "\n".join(lines).rstrip()


def check_image(path: str) -> None:
    """Raises UserError if a plot cannot be written there, before anything is scored."""
    if not path.endswith(_IMAGES):
        raise UserError("--plot", f"{shorten(path)} is neither .png nor .svg", "name such a file")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UserError("--plot", "matplotlib is not installed", "pip install 'align-negatives[plot]'") from None


def plot(curves: dict[str, dict[int, dict]], path: str, how: str = SUM) -> None:
    """Draws the curves with their intervals over the number of prompts, on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn = 0
    for run, points in curves.items():
        counts = [prompts for prompts in points if prompts]
        names = list(dict.fromkeys(name for found in points.values() for name in found if name != BASE))
        for name in names:
            values = [points[prompts][name][how] for prompts in counts]
            label = name if len(curves) == 1 else f"{Path(run).name}: {name}"
            style = {"marker": _MARKERS[drawn % len(_MARKERS)], "linestyle": _DASHES[drawn % len(_DASHES)]}
            (line,) = axes.plot(counts, [one["accuracy"] for one in values], label=label, **style)
            drawn += 1
            low, high = zip(*(one["interval"] for one in values), strict=True)
            axes.fill_between(counts, low, high, color=line.get_color(), alpha=0.12, linewidth=0)
        axes.axhline(points[0][BASE][how]["accuracy"], color="black", linestyle=(0, (1, 3)), linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("prompts learned from (thin dots: the base)")
    axes.set_ylabel(f"accuracy, by {how}")
    axes.legend(fontsize="small")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
