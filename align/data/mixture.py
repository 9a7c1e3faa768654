"""How many rows of a step come from which group of rows: a group is a source, or a source's rows of one role."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Shares = Callable[[int], Sequence[float]]  # step (from 0) -> share of each group; they sum to 1


class Mixture:
    """Deals the places of each step to groups so that, at any time, every group has had its share, to within a row.

    Shares may change from step to step. `together`: sets of groups of which every step must have one row each, where
    it has room for them: an objective that needs both roles never meets a step of one alone.
    """

    def __init__(self, shares: Shares, rows_per_step: int, together: Sequence[set[int]] = ()):
        self.shares, self.rows_per_step, self.together = shares, rows_per_step, together
        self.due: list[float] = []  # rows that each group is owed; sums to 0 between steps

    def take(self, step: int, count: int | None = None) -> list[int]:
        """The group of each place of `step`; steps are taken in their order. `count`: places, if not all."""
        count, shares = count or self.rows_per_step, self.shares(step)
        self.due = [owed + share * count for owed, share in zip(self.due or [0.0] * len(shares), shares, strict=True)]
        places: list[int] = []
        for place in range(count):
            lacking = [groups for groups in self.together if not groups.intersection(places)]
            allowed = range(len(shares))
            if lacking and len(lacking) >= count - place:  # the last places are kept for what is lacking
                allowed = sorted(set.union(*lacking))
            chosen = max(allowed, key=lambda group: (self.due[group], -group))
            self.due[chosen] -= 1
            places.append(chosen)
        return places


def fixed(weights: Sequence[float]) -> Shares:
    """The same shares at every step, in proportion to `weights`."""
    total = sum(weights)
    shares = [weight / total for weight in weights]
    return lambda step: shares


def by_role(weights: Sequence[float], is_positive: Sequence[bool], start: float, end: float, steps: int) -> Shares:
    """Shares of groups of positives that go linearly from `start` at the first to `end` at the last of `steps`.

    The groups of negatives have the rest; among groups of one role shares are in proportion to `weights`.
    """
    sums = {role: sum(w for w, own in zip(weights, is_positive, strict=True) if own is role) for role in (True, False)}

    def shares(step: int) -> list[float]:
        positives = start + (end - start) * (step / max(steps - 1, 1))
        of_role = {True: positives, False: 1 - positives}
        return [of_role[own] * weight / sums[own] for weight, own in zip(weights, is_positive, strict=True)]

    return shares
