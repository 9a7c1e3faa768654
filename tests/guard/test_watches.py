"""What the guard measures, against plain loops over the logits of every position."""

from __future__ import annotations

import contextlib

import pytest
import torch

from align.guard.rows import LONGEST, FixedRows, shortest
from align.guard.watches import WORDS, Watches, repetition
from align.objectives import NEGATIVE, POSITIVE
from align.scoring.likeliest import K
from tests import tiny

BENIGN = [tiny.row("Who?", positives=["Me."]), tiny.row("What is it?", positives=["A small stone, and a bird on it."])]
TRAIN = [tiny.row("Why?", negatives=["Because, because, because."], positives=["So it is."])]


def watches(model) -> Watches:
    groups = {
        "benign": shortest(BENIGN, POSITIVE, 4),
        "negative": shortest(TRAIN, NEGATIVE, 4),
        "positive": shortest(TRAIN, POSITIVE, 4),
        "retain": [],
    }
    rows = FixedRows(
        [row for own in groups.values() for row in own], device="cpu", tokens_per_device=60, pad_id=258,
        layout="padded", autocast=contextlib.nullcontext,
    )  # fmt: skip
    return Watches(groups, rows, model, tiny.tokenizer())


def positions(model, rows):
    """(log-distribution, target, earlier tokens) of every response token, from one forward pass a row."""
    for row in rows:
        ids = [*row.prompt_ids, *row.responses[0].ids]
        with torch.no_grad():
            logps = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        for place in range(len(row.prompt_ids), len(ids)):
            yield logps[place - 1], ids[place], ids[:place]


def means(model, rows) -> dict[str, float]:
    told = {"logps": [], "entropy": [], "top1": [], "repeated": []}
    for logps, target, earlier in positions(model, rows):
        told["logps"].append(logps[target].item())
        told["entropy"].append(-(logps.exp() * logps).sum().item())
        told["top1"].append(logps.max().exp().item())
        told["repeated"].append(sum(logps[token].exp().item() for token in set(earlier) - {target}))
    return {name: sum(values) / len(values) for name, values in told.items()}


def changed(model):
    """The same model with other weights."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    return model


def test_every_watch_by_plain_loops():
    model = tiny.llama()
    watched = watches(model)
    watched.begin(model)
    watched.begin_answers()
    groups = watched.groups
    start = {name: means(model, rows) for name, rows in groups.items() if rows}
    before = [logps for logps, _, _ in positions(model, groups["benign"])]
    told = watched.measure(changed(model), with_answers=True)
    now = {name: means(model, rows) for name, rows in groups.items() if rows}
    for name in ("benign", "positive"):
        assert told[name] == pytest.approx(start[name]["logps"] - now[name]["logps"], abs=1e-4)
    for name in ("top1", "repeated"):
        assert told[name] == pytest.approx(now["negative"][name] - start["negative"][name], abs=1e-5)
    assert told["entropy"] == pytest.approx(abs(now["benign"]["entropy"] - start["benign"]["entropy"]), abs=1e-4)
    after = [logps for logps, _, _ in positions(model, groups["benign"])]
    pairs = zip(after, before, strict=True)
    kl = sum(tiny.coarse_kl(p, q, q.topk(K).indices.tolist()) for p, q in pairs) / len(after)
    assert told["kl"] == pytest.approx(kl, abs=1e-5) and kl > 0.01
    assert told.keys() <= WORDS.keys() and "retain" not in told
    assert model.training is False


def test_nothing_has_changed_at_the_start():
    model = tiny.llama()
    watched = watches(model)
    watched.begin(model)
    watched.begin_answers()
    told = watched.measure(model, with_answers=True)
    assert told == pytest.approx(dict.fromkeys(told, 0.0), abs=1e-5)
    assert told.keys() - watched.measure(model, with_answers=False).keys() == {"length", "repetition"}


def test_the_start_survives_being_written(tmp_path):
    model = tiny.llama()
    watched, again = watches(model), watches(model)
    watched.begin(model)
    watched.begin_answers()
    watched.rows.save(tmp_path / "start.safetensors")
    again.rows.load(tmp_path / "start.safetensors")
    again.start = watched.start
    changed(model)
    assert again.measure(model, with_answers=True) == watched.measure(model, with_answers=True)


def test_rows_are_cut_and_the_shortest_taken():
    rows = [tiny.row("x" * count, negatives=["y" * 100, "z"], positives=["p"]) for count in (9, 3, 6)]
    chosen = shortest(rows, NEGATIVE, 2)
    assert [row.example.prompt for row in chosen] == ["xxx", "xxxxxx"]
    assert all(len(row.responses) == 1 and len(row.responses[0].ids) == LONGEST for row in chosen)


def test_repetition():
    assert repetition([1, 2, 3, 4, 5, 6, 7]) == 0
    assert repetition([1] * 24) == pytest.approx(20 / 21)
    assert repetition([1, 2, 1, 2, 1, 2, 1]) == pytest.approx(0.5)
    assert repetition([]) == repetition([1, 2, 3, 4]) == 0
