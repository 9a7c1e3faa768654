"""What became of the rows: the contents of `data.json`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SHOWN = 10  # how many places of a kind are named


@dataclass
class Ledger:
    """Rows read, used, and what was dropped or cut and why. Nothing is dropped without an entry here."""

    read: int = 0
    used: int = 0
    dropped: Counter = field(default_factory=Counter)  # reason -> rows or responses
    places: dict[str, list[str]] = field(default_factory=dict)  # reason -> first places

    def drop(self, reason: str, place: object) -> None:
        """Counts one more; `place` is only written out if it is among the first."""
        self.dropped[reason] += 1
        self.places.setdefault(reason, [])
        if len(self.places[reason]) < SHOWN:
            self.places[reason].append(str(place))

    def merge(self, other: Ledger, prefix: str = "") -> None:
        """Takes over what `other` dropped, its reasons behind `prefix`; the rows it read are not counted as ours."""
        for reason, count in other.dropped.items():
            self.dropped[prefix + reason] += count
            places = self.places.setdefault(prefix + reason, [])
            places += other.places[reason][: SHOWN - len(places)]

    def as_dict(self) -> dict:
        reasons = {
            key: {"count": count, "first": list(self.places[key])} for key, count in sorted(self.dropped.items())
        }
        return {"rows_read": self.read, "rows_used": self.used, "dropped": reasons}

    def take_over(self, other: Ledger) -> None:
        """Becomes a copy of `other`."""
        self.read, self.used, self.dropped, self.places = other.read, other.used, other.dropped, other.places

    @classmethod
    def from_dict(cls, data: dict) -> Ledger:
        """The ledger that `as_dict` wrote."""
        dropped = data["dropped"]
        counts = Counter({reason: one["count"] for reason, one in dropped.items()})
        places = {reason: list(one["first"]) for reason, one in dropped.items()}
        return cls(data["rows_read"], data["rows_used"], counts, places)
