"""Adapters by role: each token is computed by its own adapter alone, forward and backward."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from align import models
from align.data.collate import collate
from align.data.layout import NONE, PACKED, PADDED, ROOM
from align.data.steps import by_role
from align.errors import UserError
from align.objectives import NEGATIVE, POSITIVE
from align.recipe import Adapter
from align.scoring import support
from align.scoring.logprobs import response_logps
from align.scoring.recompute import prepare
from align.scoring.routing import Routing, routing_of, token_roles
from tests import tiny

NAMES = {POSITIVE: "positive", NEGATIVE: "negative"}


def with_heads(targets: list[str] | str = "all-linear"):
    """The tiny model with two adapters that say something, each something else."""
    policy = models.add_adapter(tiny.llama(), Adapter(rank=4, targets=targets), 0, list(NAMES.values()))
    Routing(NAMES, POSITIVE).attach(policy)
    assert support.use_packed(policy, 512) is None
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.1)
    return policy


@pytest.fixture(scope="module")
def policy():
    return with_heads()


@pytest.fixture(scope="module")
def rows():
    given = [
        tiny.row("Where is it?", positives=["Here."], negatives=["I know not.", "No."]),
        tiny.row("Two and two?", negatives=["5", "Twenty two it is."], positives=["Four it is."]),
    ]
    return [part for row in given for part in by_role(row)]


def test_a_row_is_split_by_role_and_nothing_is_lost(rows):
    assert [[one.role for one in row.responses] for row in rows] == [[1], [-1, -1], [1], [-1, -1]]
    assert rows[0].prompt_ids == rows[1].prompt_ids and rows[0].example is rows[1].example


@pytest.mark.parametrize("layout", [PADDED, PACKED])
def test_each_response_is_scored_by_peft_with_its_adapter_alone(policy, rows, layout):
    """Against a plain PEFT model with one active adapter, response by response; and the base, for other roles."""
    base = dataclasses.replace(rows[0], responses=(dataclasses.replace(rows[0].responses[0], role=0),))
    batch = collate([*rows, base], 258, layout)
    with torch.no_grad():
        found = response_logps(policy, batch)
    index = 0
    for row in [*rows, base]:
        for response in row.responses:
            ids = torch.tensor([[*row.prompt_ids, *response.ids]])
            with torch.no_grad():
                if response.role:
                    policy.base_model.set_adapter(NAMES[response.role])
                    with routing_of(policy.get_base_model()).set(response.role):
                        logits = policy(input_ids=ids).logits
                else:
                    with policy.disable_adapter():
                        logits = policy(input_ids=ids).logits
            policy.base_model.set_adapter(list(NAMES.values()))
            logps = logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
            expected = logps.gather(-1, ids[0, len(row.prompt_ids) :, None])[:, 0]
            torch.testing.assert_close(found[index, : len(expected)], expected, rtol=1e-5, atol=1e-5)
            index += 1
    same = [found[0, :3], found[-1, :3]]
    assert not torch.allclose(*same, atol=1e-2), "a head must differ from the base for this to mean anything"


@pytest.mark.parametrize("layout", [PADDED, PACKED])
@pytest.mark.parametrize("role", [POSITIVE, NEGATIVE])
def test_a_head_learns_from_its_own_role_alone(policy, rows, layout, role):
    policy.zero_grad()
    response_logps(
        policy, collate([row for row in rows if row.responses[0].role == role], 258, layout)
    ).sum().backward()
    own, other = NAMES[role], NAMES[-role]
    grads = {name: weight.grad for name, weight in policy.named_parameters() if weight.requires_grad}
    assert all(grad is not None for grad in grads.values()), "DDP waits for a gradient of every weight"
    assert all((grad == 0).all() for name, grad in grads.items() if f".{other}." in name)
    assert sum((grad != 0).any() for name, grad in grads.items() if f".{own}." in name) >= 20
    policy.zero_grad()


def test_mixed_micro_batches_give_both_heads_the_gradients_of_pure_ones(policy, rows):
    def grads(some) -> dict:
        policy.zero_grad()
        response_logps(policy, collate(some, 258, PACKED)).sum().backward()
        return {name: weight.grad.clone() for name, weight in policy.named_parameters() if weight.requires_grad}

    mixed, pure = grads(rows), [grads([row for row in rows if row.responses[0].role == role]) for role in NAMES]
    for name, grad in mixed.items():
        torch.testing.assert_close(grad, pure[0][name] + pure[1][name], rtol=1e-4, atol=1e-4)
    policy.zero_grad()


@pytest.mark.parametrize("mode", ROOM)
@pytest.mark.parametrize("layout", [PADDED, PACKED])
def test_layers_that_are_computed_again_know_whose_tokens_they_had(rows, layout, mode):
    """The backward pass comes when another batch has been routed, and under other roles."""
    found = {}
    for name in (NONE, mode):
        policy = with_heads().train()
        assert prepare(policy)
        batch = dataclasses.replace(collate(rows, 258, layout), recompute=name)
        first = response_logps(policy, batch)
        with torch.no_grad():
            response_logps(policy, collate(rows[1:2], 258, layout))
        with routing_of(policy.get_base_model()).set(NEGATIVE):
            first.sum().backward()
        found[name] = {name: weight.grad for name, weight in policy.named_parameters() if weight.requires_grad}
    for name, grad in found[NONE].items():
        torch.testing.assert_close(found[mode][name], grad, rtol=1e-5, atol=1e-6)
    assert sum((grad != 0).any() for grad in found[mode].values()) >= 40


def test_without_a_batch_the_default_role_computes(policy):
    ids = torch.arange(9)[None]
    routing = routing_of(policy.get_base_model())
    with torch.no_grad():
        found = policy(input_ids=ids).logits
        with routing.set(POSITIVE):
            assert torch.equal(found, policy(input_ids=ids).logits)
        with routing.set(NEGATIVE):
            assert (found - policy(input_ids=ids).logits).abs().max() > 0.01
        with routing.set(0), torch.no_grad():
            off = policy(input_ids=ids).logits
        with policy.disable_adapter():
            torch.testing.assert_close(off, policy(input_ids=ids).logits)
    assert routing.roles == POSITIVE


def test_a_stand_in_belongs_to_nobody(policy):
    for layout in (PADDED, PACKED):
        batch = collate([], 258, layout)
        assert token_roles(batch).tolist() == [[0] * batch.tokens.input_ids.shape[1]]
        (response_logps(policy, batch).sum() * 0.0).backward()
    assert all(weight.grad is not None for weight in policy.parameters() if weight.requires_grad)
    policy.zero_grad()


def test_roles_that_share_a_packed_prompt_are_refused(policy):
    row = tiny.row("Where?", positives=["Here."], negatives=["No."])
    with pytest.raises(AssertionError, match="responses of one role"):
        response_logps(policy, collate([row], 258, PACKED))


@pytest.mark.parametrize("targets", [["lm_head"], ["q_proj", "lm_head"], ["embed_tokens"]])
def test_adapters_that_cannot_be_masked_are_refused(targets):
    policy = models.add_adapter(tiny.llama(), Adapter(rank=2, targets=targets), 0, list(NAMES.values()))
    with pytest.raises(UserError, match="linear layers other than the LM head"):
        Routing(NAMES, POSITIVE).attach(policy)


def test_each_adapter_begins_the_same_whichever_others_there_are():
    def starts(names) -> dict:
        policy = models.add_adapter(tiny.llama(), Adapter(rank=2), 3, names)
        assert all(weight.requires_grad == ("lora_" in name) for name, weight in policy.named_parameters())
        return {name: weight for name, weight in policy.named_parameters() if "lora_A.negative" in name}

    alone, beside = starts(["negative"]), starts(["positive", "negative"])
    assert len(alone) == len(beside) > 10
    assert all(torch.equal(weight, beside[name]) for name, weight in alone.items())
