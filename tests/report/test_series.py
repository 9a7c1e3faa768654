"""Buckets of metrics: every number against a loop over the same lines, also when the file is read bit by bit."""

from __future__ import annotations

import json
import math

import pytest

from align.errors import UserError
from align.report.series import BUCKETS, Metrics
from tests.report import worlds


def by_loop(lines: list[dict], name: str, width: int) -> list[list[float]]:
    """[mean step, mean, smallest, largest] of each bucket of steps, the slow way."""
    buckets: dict[int, list[tuple[int, float]]] = {}
    for line in lines:
        if name in line and math.isfinite(line[name]):
            buckets.setdefault(line["step"] // width, []).append((line["step"], line[name]))
    found = []
    for _, held in sorted(buckets.items()):
        values = [value for _, value in held]
        found.append([sum(s for s, _ in held) / len(held), math.fsum(values) / len(held), min(values), max(values)])
    return found


@pytest.mark.parametrize("steps", [1, 7, BUCKETS - 1, BUCKETS, 1500, 9000])
def test_buckets_are_those_of_a_loop(tmp_path, steps):
    file = tmp_path / "metrics.jsonl"
    worlds.metrics(file, steps)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    metrics = Metrics(file).read_on()
    assert metrics.last_step // metrics.width < BUCKETS
    assert metrics.width == 1 or metrics.last_step // (metrics.width // 2) >= BUCKETS, "no wider than it must be"
    for name, series in metrics.items():
        expected = by_loop(lines, name, metrics.width)
        assert len(series.points()) == len(expected) <= BUCKETS
        for point, other in zip(series.points().tolist(), expected, strict=True):
            assert point == pytest.approx(other, rel=1e-12)
        own = [(line["step"], line[name]) for line in lines if name in line]
        assert (series.first, series.last, series.count) == (own[0], own[-1], len(own))
        assert (series.low, series.high) == (min(v for _, v in own), max(v for _, v in own))
        assert series.mean == pytest.approx(math.fsum(v for _, v in own) / len(own), rel=1e-12)
    assert metrics.total_tokens == sum(line["tokens"] for line in lines)
    seconds = math.fsum(line["tokens"] / line["tokens_per_second"] for line in lines)
    assert metrics.step_seconds == pytest.approx(seconds, rel=1e-12)


def test_a_file_that_grows_is_read_on(tmp_path):
    whole, file = tmp_path / "whole.jsonl", tmp_path / "metrics.jsonl"
    worlds.metrics(whole, 3000)
    data, metrics = whole.read_bytes(), Metrics(file)
    metrics.read_on()  # before there is one
    for end in (0, 11, 2000, 200_000, len(data) - 5, len(data)):  # most ends cut a line
        file.write_bytes(data[:end])
        metrics.read_on()
        assert metrics.steps == data[:end].count(b"\n")
    at_once = Metrics(whole).read_on()
    assert metrics.width == at_once.width > 1
    for name, series in at_once.items():
        assert metrics.by_name[name].points() == pytest.approx(series.points(), rel=1e-12)


def test_a_file_that_was_cut_back_is_read_anew(tmp_path):
    """As when a run goes on from a checkpoint, behind which metrics are forgotten."""
    file = tmp_path / "metrics.jsonl"
    worlds.metrics(file, 2000)
    metrics = Metrics(file).read_on()
    kept = file.read_text().splitlines(keepends=True)[:50]
    file.write_text("".join(kept))
    metrics.read_on()
    assert (metrics.steps, metrics.last_step, metrics.width) == (50, 50, 1)
    assert metrics.total_tokens == sum(json.loads(line)["tokens"] for line in kept)


def test_what_is_no_finite_number_is_counted_or_left(tmp_path):
    file = tmp_path / "metrics.jsonl"
    rows = [
        '{"step": 1, "loss": NaN, "note": "text", "on": true}',
        '{"step": 2, "loss": 3.0}',
        '{"step": 3, "loss": Infinity}',
    ]
    file.write_text("".join(row + "\n" for row in rows))
    metrics = Metrics(file).read_on()
    assert list(metrics.by_name) == ["loss"]
    assert metrics.by_name["loss"].not_finite == 2 and metrics.by_name["loss"].points().tolist() == [[2, 3, 3, 3]]


def test_a_damaged_line_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2,\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:2: is damaged.*delete the line"):
        Metrics(file).read_on()
