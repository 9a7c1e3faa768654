"""Which weight a sweep chooses, by hand; what the table says."""

from __future__ import annotations

import json

import pytest

from align.repair.sweep import choose, table


def point(a: float, gain: float, low: float, lost: int) -> dict:
    flipped = {"questions": 20, "right_to_wrong": lost, "negative_flip_rate": lost / 20, "wrong_to_right": 3}
    return {"a": a, "accuracy": 0.5 + gain, "gain": gain, "gain_interval": [low, gain + 0.1], "flips": flipped}


def test_the_nearest_to_the_base_that_keeps_the_gain():
    """The policy gains 0.4, at least 0.2: 0.25 at a = 0.5 is within that, 0.15 at a = 0.2 is not."""
    points = [point(0.2, 0.15, 0.05, 1), point(0.5, 0.25, 0.1, 2), point(0.7, 0.1, 0.0, 4), point(1.0, 0.4, 0.2, 9)]
    found = {"base": {"accuracy": 0.5}, "points": points} | choose(points)
    assert found["chosen"] == 0.5 and found["least_gain"] == 0.2
    assert [one["keeps"] for one in points] == [False, True, False, True]
    source = {"path": "rows\x1b.jsonl", "rows_read": 21, "rows_used": 20, "dropped": {"broken": {"count": 1}}}
    text = table(found | {"data": source, "flips": source})
    assert "chosen: a = 0.5" in text and "right to wrong 2, at a = 1 9" in text
    assert "rows read 21, used 20 · broken: 1" in text and "\x1b" not in text
    json.dumps(found)


@pytest.mark.parametrize("low", [0.0, -0.1])
def test_a_gain_that_may_be_chance_is_none(low):
    points = [point(0.5, 0.3, 0.1, 0), point(1.0, 0.2, low, 2)]
    assert choose(points)["chosen"] is None and not any(one["keeps"] for one in points)
