"""What the guard does about an alarm: one action after the other, in a fixed order.

Each alarm takes the next action; one at twice its budget leaves one out, at four times two, at eight times three. What
is left out of lowering and anchoring is then done as well: a policy that was rolled back shall not fall again. The run
is stopped only when all that may be done has been.
"""

from __future__ import annotations

import math

from align.guard.options import ACTIONS, ANCHOR, LOWER, ROLLBACK, STOP

LOWEST = 1 / 16  # the negatives' weight is halved down to here
CALM, CALMS = 0.7, 2  # the share of their budgets below which all watches must be, and how often, to restore it


class Ladder:
    """Decides on actions. `allowed`: those that the recipe allows and that make sense in this run, in their order."""

    def __init__(self, allowed: tuple[str, ...]):
        self.allowed = tuple(action for action in ACTIONS if action in allowed)
        self.taken = 0  # how many of `allowed` the present alarm has taken
        self.weight = 1.0  # of the negatives
        self.is_anchored = False
        self.calms = 0

    @property
    def in_force(self) -> bool:
        """Whether an alarm is not over yet."""
        return self.taken > 0

    def alarm(self, excess: float, can_roll_back: bool) -> list[str]:
        """The actions to take, in their order, for the worst watch at `excess` times its budget, above 1."""
        self.calms = 0
        skipped = int(math.log2(excess)) if math.isfinite(excess) else len(ACTIONS)
        place = max(self.taken, min(skipped, ACTIONS.index(ROLLBACK)))
        usable = [action for action in self.allowed if action != ROLLBACK or can_roll_back]
        coming = [action for action in usable if ACTIONS.index(action) >= place and not self._is_spent(action)]
        if not coming:  # the last that may be done is done now, or again if it can be
            again = (LOWER, ROLLBACK) if self.taken else ACTIONS
            coming = [action for action in usable[-1:] if action in again and not self._is_spent(action)]
        if not coming:
            return []
        fresh = [action for action in (LOWER, ANCHOR) if action in usable and self._is_fresh(action)]
        last = fresh[-1] if coming[0] == STOP and fresh else coming[0]
        actions = [action for action in fresh if ACTIONS.index(action) < ACTIONS.index(last)] + [last]
        self.taken = ACTIONS.index(last) + 1
        if LOWER in actions:
            self.weight = max(self.weight / 2, LOWEST)
        self.is_anchored = self.is_anchored or ANCHOR in actions
        return actions

    def _is_spent(self, action: str) -> bool:
        return (action == ANCHOR and self.is_anchored) or (action == LOWER and self.weight <= LOWEST)

    def _is_fresh(self, action: str) -> bool:
        return not self.is_anchored if action == ANCHOR else self.weight == 1.0

    def calm(self, excess: float) -> bool:
        """Takes in a measurement without alarm, the worst watch at `excess` of its budget; True: restore the weight.

        The weight is doubled. An anchor stays for the rest of the run.
        """
        self.calms = self.calms + 1 if excess < CALM else 0
        if not self.in_force or self.calms < CALMS:
            return False
        self.calms = 0
        if self.weight == 1.0:
            self.taken = 0
            return False
        self.weight = min(1.0, 2 * self.weight)
        self.taken = ACTIONS.index(LOWER)  # if that was too early it is lowered again
        return True

    def state(self) -> dict:
        return {name: getattr(self, name) for name in ("taken", "weight", "is_anchored", "calms")}

    def restore(self, state: dict) -> None:
        vars(self).update(state)
