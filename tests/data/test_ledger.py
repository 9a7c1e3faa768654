"""What became of the rows: counts, and the first places in the order of files, whoever read them when."""

from __future__ import annotations

import json
import random

from align.data.ledger import SHOWN, Ledger, total
from align.data.readers import Place


def places(count: int) -> list[Place]:
    return [Place(f"{name}.jsonl", 0, number) for name in "ab" for number in range(1, count // 2 + 1)]


def test_the_first_places_are_the_first_of_the_files():
    """Rows come shuffled and from several ranks."""
    found = places(60)
    shuffled = random.Random(0).sample(found, len(found))
    ledgers = [Ledger(), Ledger(), Ledger()]
    for index, place in enumerate(shuffled):
        ledgers[index % 3].drop("odd", place, "why" if place.number == 2 else "")
    told = total(ledgers).as_dict()["dropped"]["odd"]
    assert told["count"] == 60
    assert told["first"] == ["a.jsonl:1", "a.jsonl:2: why", *[f"a.jsonl:{n}" for n in range(3, SHOWN + 1)]]


def test_places_without_an_order_stay_as_they_came():
    ledger = Ledger()
    for number in range(20, 0, -1):
        ledger.drop("odd", f"a.jsonl:{number}")
    assert ledger.places["odd"] == [f"a.jsonl:{number}" for number in range(20, 20 - SHOWN, -1)]


def test_a_place_is_written_out_when_it_is_asked_for_only():
    """Its file need not be there: a place behind a cut by bytes would have to read it."""
    ledger = Ledger()
    for begin in range(100, 0, -1):
        ledger.drop("odd", Place("nowhere.jsonl", begin, 1))
    ledger.drop("odd", Place("nowhere.jsonl", 0, 7))
    other = Ledger()
    other.restore(json.loads(json.dumps(ledger.state())))
    assert other == ledger and other.first["odd"][0] == (Place("nowhere.jsonl", 0, 7), "")


def test_dropped_rows_of_another_ledger_are_taken_over_under_a_prefix():
    ledger, other = Ledger(read=2, used=1), Ledger(read=5, used=4)
    other.drop("odd", "b.jsonl:1")
    ledger.merge(other, "retain: ")
    assert ledger.as_dict() == {
        "rows_read": 2, "rows_used": 1, "dropped": {"retain: odd": {"count": 1, "first": ["b.jsonl:1"]}}
    }  # fmt: skip


def test_responses_are_counted_by_source_and_role_over_ranks_and_kept():
    ledgers, retained = [Ledger(), Ledger()], Ledger()
    for index, roles in enumerate((["negative", "negative"], ["positive", "negative"], ["negative"])):
        ledgers[index % 2].count("a.jsonl", roles)
    retained.count("b.jsonl", ["positive"])
    whole = total(ledgers)
    whole.merge(retained, "retain: ")
    assert whole.as_dict()["responses"] == {
        "a.jsonl": {"negative": 4, "positive": 1, "rows": 3}, "retain: b.jsonl": {"positive": 1, "rows": 1}
    }  # fmt: skip
    other = Ledger()
    other.restore(json.loads(json.dumps(whole.state())))
    assert other == whole
