"""References with a store in front: what is stored is not computed again, and nothing but that changes."""

from __future__ import annotations

import pytest
import torch

from align.data.collate import MicroBatch, collate
from align.data.layout import PACKED, PADDED
from align.reference import ADAPTER_OFF, FROZEN, References, freeze
from align.reference.store import Store
from align.scoring import support
from tests import tiny
from tests.reference.test_reference import score, with_adapter

PAD, WHO, OTHER = 258, "ab" * 32, "cd" * 32


def rows():
    return [
        tiny.row("Why?", positives=["Because."], negatives=["No idea at all."], samples=["So", "Because it is."]),
        tiny.row("And where is it?", negatives=["Gone."], samples=["Over there."]),
        tiny.row("When?", positives=["Now."], negatives=["Never, I would say."]),
    ]


@pytest.fixture
def batch() -> MicroBatch:
    return collate(rows(), PAD)


class Counted:
    """A frozen model whose calls are counted, behind a store in a folder."""

    def __init__(self, folder, **options):
        self.calls, self.loads, self.folder, self.options = 0, 0, folder, options

    def load(self, name: str):
        self.loads += 1
        model = freeze(tiny.llama(seed=5))
        model.register_forward_hook(lambda *_: setattr(self, "calls", self.calls + 1))
        return model

    def references(self, **options) -> References:
        stores = {FROZEN: Store(self.folder, WHO, **self.options)}
        return References(FROZEN, None, {}, load=self.load, stores=stores, **options)


@pytest.mark.parametrize("layout", [PADDED, PACKED])
def test_the_second_time_nothing_is_computed_nor_loaded(layout, tmp_path):
    batch, counted, model = collate(rows(), PAD, layout), Counted(tmp_path), tiny.llama(seed=5)
    if layout == PACKED:
        load = counted.load

        def packed(name: str):
            loaded = load(name)
            assert support.use_packed(loaded, 512) is None
            counted.calls = 0
            return loaded

        counted.load = packed
        assert support.use_packed(model, 512) is None
    first = counted.references().logps(None, batch)
    assert torch.equal(first, score(model, batch)) and (counted.calls, counted.loads) == (1, 1)
    references = counted.references()
    assert torch.equal(references.logps(None, batch), first)
    assert (counted.calls, counted.loads, references.forwards) == (1, 1, 0)


def test_stored_log_probs_serve_other_micro_batches(batch, tmp_path):
    """Other company, order and padding; only the last bits may differ from a live pass."""
    counted = Counted(tmp_path)
    references = counted.references()
    references.logps(None, batch)
    for some in ([2], [1, 0], [2, 0, 1]):
        other = collate([rows()[index] for index in some], PAD)
        expected = score(tiny.llama(seed=5), other)
        torch.testing.assert_close(references.logps(None, other), expected, rtol=1e-5, atol=1e-5)
    assert counted.calls == 1


def test_one_missing_response_sends_the_whole_micro_batch(batch, tmp_path):
    """A run killed between two micro-batches, or a damaged record: what is stored stays, the rest is as it was."""
    whole, counted = Counted(tmp_path / "whole").references().logps(None, batch), Counted(tmp_path / "part")
    references = counted.references()
    references.logps(None, collate(rows()[:1], PAD))
    alone = references.logps(None, collate(rows()[:1], PAD))
    found = references.logps(None, batch)
    assert counted.calls == 2
    first = batch.prompt == 0
    assert torch.equal(found[first][:, : alone.shape[1]], alone), "stored values are used, not scored again"
    assert torch.equal(found[~first], whole[~first]), "missing ones come from the same forward as if none were stored"
    assert torch.equal(counted.references().logps(None, batch), found) and counted.calls == 2


def test_float16_is_rounded_before_its_first_use(batch, tmp_path):
    counted = Counted(tmp_path, dtype="float16")
    first = counted.references().logps(None, batch)
    exact = score(tiny.llama(seed=5), batch)
    assert not torch.equal(first, exact) and torch.equal(first, exact.half().float())
    assert torch.equal(counted.references().logps(None, batch), first) and counted.calls == 1


def test_equal_responses_in_a_micro_batch_have_one_value(tmp_path):
    twice = collate([tiny.row("Why?", negatives=["No."]), tiny.row("Where?", negatives=["Here, or there."])] * 2, PAD)
    counted = Counted(tmp_path)
    first = counted.references().logps(None, twice)
    assert torch.equal(first[0], first[2]) and torch.equal(counted.references().logps(None, twice), first)


def test_the_adapter_off_is_stored_too_and_does_not_follow_the_policy(batch, tmp_path):
    policy = with_adapter()
    for expected in (1, 0):
        references = References(ADAPTER_OFF, None, {}, stores={ADAPTER_OFF: Store(tmp_path, WHO)})
        assert torch.equal(references.logps(policy, batch), score(tiny.llama(), batch))
        assert references.forwards == expected


def test_two_references_have_two_stores(batch, tmp_path):
    models = {FROZEN: freeze(tiny.llama(seed=5)), "second": freeze(tiny.llama(seed=6))}
    live = References(FROZEN, "second", models).logps(None, batch)
    for expected in (2, 0):
        stores = {FROZEN: Store(tmp_path, WHO), "second": Store(tmp_path, OTHER)}
        references = References(FROZEN, "second", models, stores=stores)
        assert torch.equal(references.logps(None, batch), live) and references.forwards == expected


def test_who_wrote_the_responses_shares_the_store_of_the_same_model(batch, tmp_path):
    store = Store(tmp_path, WHO)
    models = {FROZEN: freeze(tiny.llama(seed=5))}
    references = References(FROZEN, None, models, behavior=FROZEN, stores={FROZEN: store})
    assert torch.equal(references.logps(None, batch), references.behavior_logps(None, batch))
    assert references.forwards == 1


@pytest.mark.parametrize("others_miss", [True, False])
def test_ranks_decide_together_under_zero3(others_miss, batch, tmp_path, monkeypatch):
    """A rank that has everything forwards when another one lacks something, and uses what is stored all the same."""
    counted = Counted(tmp_path)
    first = counted.references().logps(None, batch)
    asked = []
    monkeypatch.setattr("align.reference.gather_object", lambda own: asked.append(own[0]) or [*own, others_miss])
    references = counted.references(equal_calls=True)
    assert torch.equal(references.logps(None, batch), first)
    references.logps(None, collate([], PAD))
    assert asked == [False, False], "a stand-in lacks nothing, and takes part"
    assert references.forwards == (2 if others_miss else 0)
    assert references.stores[FROZEN].num_entries == len(batch.role), "and is not stored"


def test_a_stand_in_costs_nothing(tmp_path):
    references = Counted(tmp_path).references()
    assert references.logps(None, collate([], PAD)).shape == (1, 1)
    assert references.forwards == 0 and not list(tmp_path.iterdir())


def test_loading_late_does_not_shift_what_is_drawn_afterwards(batch, tmp_path):
    drawn = []
    for _ in range(2):  # the second time nothing is loaded
        torch.manual_seed(3)
        counted = Counted(tmp_path)
        load = counted.load
        counted.load = lambda name, load=load: (torch.rand(7), load(name))[1]
        counted.references().logps(None, batch)
        drawn.append((counted.loads, torch.rand(3).tolist()))
    assert [loads for loads, _ in drawn] == [1, 0] and drawn[0][1] == drawn[1][1]
