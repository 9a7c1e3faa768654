"""What is measured on held-out rows, against all logits of one response at a time; on one rank, in any layout."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from align.data.layout import PACKED, PADDED
from align.data.load import HeldOutSet
from align.evaluation.heldout import HeldOut
from align.evaluation.intervals import of_ratio
from align.reference import FROZEN, References, freeze
from align.scoring.support import use_packed
from tests import tiny


@pytest.fixture(scope="module")
def rows():
    return tuple(
        tiny.row(f"Where is {name}?", positives=answers)
        for name, answers in (("it", ["Here.", "Over there, I think."]), ("the river", ["Nobody knows"]), ("x", ["1"]))
    )


def logits_of(model, rows) -> list[tuple[Tensor, Tensor]]:
    """(logits (T, V), ids (T,)) of each response, forwarded alone."""
    found = []
    for row in rows:
        for response in row.responses:
            ids = torch.tensor([[*row.prompt_ids, *response.ids]])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(row.prompt_ids) - 1 : -1]
            found.append((logits, torch.tensor(response.ids)))
    return found


@torch.no_grad()
def expected(model, reference, rows) -> dict[str, float]:
    sums, tokens = dict.fromkeys(("logps", "kl", "entropy", "top1"), 0.0), 0
    for (logits, ids), (other, _) in zip(logits_of(model, rows), logits_of(reference, rows), strict=True):
        for token, mine, theirs in zip(ids.tolist(), logits.double(), other.double(), strict=True):
            p = mine.softmax(-1)
            sums["logps"] += p[token].log().item()
            sums["kl"] += (p * (p / theirs.softmax(-1)).log()).sum().item()
            sums["entropy"] -= (p * p.log()).sum().item()
            sums["top1"] += p.max().item()
            tokens += 1
    return {name: total / tokens for name, total in sums.items()} | {"tokens": tokens}


@pytest.mark.parametrize("layout", [PACKED, PADDED])
@pytest.mark.parametrize("tokens_per_device", [40, 10_000])
def test_means_over_all_tokens(layout, tokens_per_device, rows):
    policy, reference = tiny.llama(1), freeze(tiny.llama(2))
    wanted = expected(policy, reference, rows)
    if layout == PACKED:
        assert not any(use_packed(model, 512) for model in (policy, reference))
    held_out = HeldOut(
        [HeldOutSet("good", "positive", rows)], state=SimpleNamespace(num_processes=1, process_index=0), device="cpu",
        tokens_per_device=tokens_per_device, pad_id=258, layout=layout, autocast=contextlib.nullcontext,
    )  # fmt: skip
    references = References(FROZEN, None, {FROZEN: reference})
    policy.train()
    found = held_out.measure(policy, references, at_start=False)["good"]
    assert policy.training, "it goes on training"
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, abs=1e-5)
    assert (found["role"], found["responses"]) == ("positive", 4)
    alone = held_out.measure(policy, None, at_start=False)["good"]
    assert alone["kl"] is None and alone["logps"] == found["logps"]


def test_the_start_is_its_own_reference(rows):
    """Its KL is 0, and what it computed then is what the trained policy is compared with later."""
    policy = tiny.llama(1)
    held_out = HeldOut(
        [HeldOutSet("good", "positive", rows)], state=SimpleNamespace(num_processes=1, process_index=0), device="cpu",
        tokens_per_device=60, pad_id=258, layout=PADDED, autocast=contextlib.nullcontext,
    )  # fmt: skip
    references = References(FROZEN, None, {FROZEN: freeze(tiny.llama(1))})
    assert held_out.measure(policy, references, at_start=True)["good"]["kl"] == 0
    assert held_out.measure(policy, references, at_start=False)["good"]["kl"] == pytest.approx(0, abs=1e-6)
    policy.load_state_dict(tiny.llama(2).state_dict())
    found = held_out.measure(policy, references, at_start=False)["good"]["kl"]
    assert found == pytest.approx(expected(policy, tiny.llama(1), rows)["kl"], abs=1e-5) and found > 0.01


def test_intervals_are_over_prompts(rows):
    """Against a loop over single responses; the change is that of the same prompts since the start."""
    held_out = HeldOut(
        [HeldOutSet("good", "positive", rows)], state=SimpleNamespace(num_processes=1, process_index=0), device="cpu",
        tokens_per_device=40, pad_id=258, layout=PADDED, autocast=contextlib.nullcontext,
    )  # fmt: skip
    start = held_out.measure(tiny.llama(1), None, at_start=True)["good"]
    found = held_out.measure(tiny.llama(2), None, at_start=False)["good"]

    def by_row(model) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            logps = [[logits.log_softmax(-1)[range(len(ids)), ids].sum() for logits, ids in logits_of(model, [row])]
                     for row in rows]  # fmt: skip
        return np.array([float(sum(one)) for one in logps]), np.array(
            [sum(len(r.ids) for r in row.responses) for row in rows]
        )

    (before, tokens), (after, _) = by_row(tiny.llama(1)), by_row(tiny.llama(2))
    assert "change_interval" not in start
    assert start["logps_interval"] == pytest.approx(of_ratio(before, tokens), abs=1e-5)
    assert found["logps_interval"] == pytest.approx(of_ratio(after, tokens), abs=1e-5)
    assert found["change_interval"] == pytest.approx(of_ratio(after - before, tokens), abs=1e-5)
