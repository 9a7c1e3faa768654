"""How far towards the base a policy can go and keep what it has gained; which answers each step gives back.

The gain is the policy's accuracy on questions with right and wrong answers (`align.evaluation.multiple_choice`, by the
sum of log-probs) less the base's. A weight `a` keeps it if its own gain is not below the 95 % interval of the gain of
the full policy (a = 1), over the questions that both answer. The largest interpolation that keeps the gain
is the smallest such `a`: nearest to the base. A gain whose interval reaches down to 0 is none, so nothing is chosen.

Negative flips: what the base gets right and the policy at `a` wrong, of the same questions or of others that tell what
must not be lost. Choose on other rows than those a result is reported on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from align.data.examples import Example
from align.data.ledger import Ledger
from align.errors import printable
from align.evaluation import figures, multiple_choice
from align.evaluation.flips import flips
from align.evaluation.probe import SUM
from align.evaluation.rows import data_hash
from align.evaluation.subject import BASE, POLICY, Subject
from align.repair.interpolate import Line

TENTHS = tuple(round(tenth / 10, 1) for tenth in range(1, 11))


@dataclass(frozen=True)
class Questions:
    """Questions of one source, under the option that named it."""

    path: str
    examples: Sequence[Example]
    where: str
    ledger: Ledger

    def right(self, models: Subject, head: str) -> np.ndarray:
        """(Q,) bool: which of them a head gets right."""
        alone = models.without(POLICY if head == BASE else BASE)
        ledger = self.ledger if head == BASE else Ledger()  # what cannot be scored is counted once
        return multiple_choice.score(alone, self.examples, ledger, self.where).correct({head: 1.0}, SUM)

    def as_dict(self) -> dict:
        return {"path": self.path, "sha256": data_hash(self.path), **self.ledger.as_dict()}


def questions(path: str, where: str) -> Questions:
    """The questions of a source that the option `where` names. Raises UserError if there are none."""
    ledger = Ledger()
    return Questions(path, multiple_choice.questions(path, ledger, where), where, ledger)


def sweep(models: Subject, line: Line, weights: Sequence[float], gain: Questions, kept: Questions) -> dict:
    """The gain on the questions `gain` and the flips on `kept`, of each of `weights` and of 1. JSON's types.

    {"data", "flips": the sources; "base": {"accuracy"}; "points": [{"a", "accuracy", "gain", "gain_interval", "keeps",
    "flips"}]; "least_gain": what must be kept; "chosen": a or None}
    """
    base = gain.right(models, BASE)
    base_kept = base if kept is gain else kept.right(models, BASE)
    points = []
    for a in sorted({*weights, 1.0}):
        line.go_to(a)
        right = gain.right(models, POLICY)
        figure = figures.share(right, base)
        point = {"a": a, "accuracy": figure["value"], "gain": figure["change"]}
        point["gain_interval"] = figure["change_interval"]
        points.append(point | {"flips": flips(base_kept, right if kept is gain else kept.right(models, POLICY))})
    sources = {"data": gain.as_dict(), "flips": kept.as_dict()}
    return {**sources, "base": {"accuracy": float(base.mean())}, "points": points, **choose(points)}


def choose(points: list[dict]) -> dict:
    """{"least_gain", "chosen"} of the points of a sweep, the last of which is the policy; marks those that keep it."""
    least = points[-1]["gain_interval"][0]
    for point in points:
        point["keeps"] = least > 0 and point["gain"] >= least
    return {"least_gain": least, "chosen": next((point["a"] for point in points if point["keeps"]), None)}


def table(found: dict) -> str:
    """The sweep for a terminal."""
    lines = [_rows(title, found[name]) for name, title in (("data", "gain"), ("flips", "flips"))]
    lines += [f"base: {found['base']['accuracy']:.3f}", ""]
    lines.append(
        f"{'a':<6}{'accuracy':<10}{'gain (95 % interval)':<28}{'keeps it':<10}{'right to wrong':<17}wrong to right"
    )
    for point in found["points"]:
        low, high = point["gain_interval"]
        lost = point["flips"]
        flipped = f"{lost['right_to_wrong']} ({lost['negative_flip_rate']:.3f})".ljust(17)
        cells = f"{point['a']:<6g}{point['accuracy']:<10.3f}"
        cells += f"{point['gain']:+.3f} ({low:+.3f} to {high:+.3f})".ljust(28)
        lines.append(f"{cells}{'yes' if point['keeps'] else 'no':<10}{flipped}{lost['wrong_to_right']}")
    return "\n".join([*lines, "", verdict(found)])


def _rows(title: str, source: dict) -> str:
    dropped = "".join(f" · {printable(reason)}: {one['count']}" for reason, one in source["dropped"].items())
    return f"{title}: {printable(source['path'])}, rows read {source['rows_read']}, used {source['rows_used']}{dropped}"


def verdict(found: dict) -> str:
    """Which weight is chosen and what it saves, in a sentence."""
    policy = found["points"][-1]
    if found["chosen"] is None:
        low, high = policy["gain_interval"]
        return f"no a is chosen: the policy's own gain is not above 0 ({low:+.3f} to {high:+.3f}), nothing can be kept"
    chosen = next(point for point in found["points"] if point["a"] == found["chosen"])
    return (
        f"chosen: a = {chosen['a']:g}, the nearest to the base with a gain of at least {found['least_gain']:+.3f}; "
        f"right to wrong {chosen['flips']['right_to_wrong']}, at a = 1 {policy['flips']['right_to_wrong']}"
    )
