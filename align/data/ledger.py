"""What became of the rows: the contents of `data.json`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from align.data.readers import Place

SHOWN = 10  # how many places of a kind are named

Where = tuple[object, str]  # a place, and what more there is to say


@dataclass
class Ledger:
    """Rows read, used, and what was dropped or cut and why. Nothing is dropped without an entry here."""

    read: int = 0
    used: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> rows or responses
    first: dict[str, list[Where]] = field(default_factory=dict)  # reason -> its first places, see `_order`
    responses: dict[str, Counter] = field(default_factory=dict)  # source -> rows used, and their responses by role

    def drop(self, reason: str, place: object, why: str = "") -> None:
        """Counts one more. Its place is only written out when it is asked for: that may take reading a file."""
        self.dropped[reason] += 1
        self._keep(reason, [(place, why)])

    def count(self, source: str, roles: Iterable[str]) -> None:
        """Counts a row of a source with responses of these roles."""
        own = self.responses.setdefault(source, Counter())
        own["rows"] += 1
        own.update(roles)

    def merge(self, other: Ledger, prefix: str = "") -> None:
        """Takes over what `other` dropped and counted, behind `prefix`; the rows it read are not counted as ours."""
        for source, counts in other.responses.items():
            self.responses.setdefault(prefix + source, Counter()).update(counts)
        for reason, count in other.dropped.items():
            self.dropped[prefix + reason] += count
            self._keep(prefix + reason, other.first[reason])

    def _keep(self, reason: str, more: list[Where]) -> None:
        places = self.first.setdefault(reason, [])
        more = [one for one in more if one not in places]  # a row may come again, in another epoch
        if len(places) == SHOWN and all(_order(places[-1]) <= _order(one) for one in more):
            return
        places += more
        places.sort(key=_order)
        del places[SHOWN:]

    @property
    def places(self) -> dict[str, list[str]]:
        """reason -> its first places, in words."""
        return {reason: [f"{at}: {why}" if why else str(at) for at, why in one] for reason, one in self.first.items()}

    def as_dict(self) -> dict:
        places = self.places
        reasons = {reason: {"count": count, "first": places[reason]} for reason, count in sorted(self.dropped.items())}
        told = {"rows_read": self.read, "rows_used": self.used, "dropped": reasons}
        counts = {source: dict(sorted(counted.items())) for source, counted in sorted(self.responses.items())}
        return told | ({"responses": counts} if counts else {})

    def state(self) -> list:
        """What `restored` needs, in JSON's types."""
        first = {
            reason: [[list(at) if isinstance(at, Place) else str(at), why] for at, why in where]
            for reason, where in self.first.items()
        }
        return [self.read, self.used, dict(self.dropped), first, self.responses]

    def restore(self, state: list) -> None:
        """Becomes the ledger that gave the state."""
        self.read, self.used, self.dropped = state[0], state[1], Counter(state[2])
        self.first = {
            reason: [(Place(*at) if isinstance(at, list) else at, why) for at, why in where]
            for reason, where in state[3].items()
        }
        self.responses = {source: Counter(counted) for source, counted in state[4].items()}


def total(ledgers: list[Ledger]) -> Ledger:
    """One ledger of what several ranks have counted."""
    everything = Ledger(sum(one.read for one in ledgers), sum(one.used for one in ledgers))
    for one in ledgers:
        everything.merge(one)
    return everything


def _order(where: Where) -> tuple:
    """As rows stand in files, so that the first ones are the same whoever reads; other places as they come."""
    return tuple(where[0]) if isinstance(where[0], Place) else ()
