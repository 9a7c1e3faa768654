"""Scores of attention heads against a loop that computes attention by itself, from hidden states and weights."""

from __future__ import annotations

import math

import pytest
import torch

from align.data.examples import Example, Response
from align.repair import heads, yesno
from tests import tiny

QUESTION = Example("Is the cat on a mat?", (Response("Yes", "positive"), Response("No", "negative")), "", "rows:1")
HEADS, GROUPS, SIZE = 4, 2, 8  # of the tiny model: query heads, key-value heads, their size


def places(ids: list[int], word: str, turned: bool) -> list[int]:
    """Where the letters of a candidate lie: one token a byte."""
    tokenizer, text = tiny.tokenizer(), "No or Yes." if turned else "Yes or No."
    listed = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = max(at for at in range(len(ids)) if ids[at : at + len(listed)] == listed)
    return [start + text.index(word) + letter for letter in range(len(word))]


def rotated(vector: list[float], place: int) -> list[float]:
    """Rotary positions, by their definition: coordinates i and i + D / 2 turn by place / 10000^(2 i / D)."""
    found, half = [0.0] * SIZE, SIZE // 2
    for i in range(half):
        angle = place / 10000 ** (2 * i / SIZE)
        found[i] = vector[i] * math.cos(angle) - vector[i + half] * math.sin(angle)
        found[i + half] = vector[i + half] * math.cos(angle) + vector[i] * math.sin(angle)
    return found


def by_hand(model, ids: list[int], yes: list[int], no: list[int]) -> list[list[float]]:
    """(layers, heads) (A_no + A_yes) log(A_no / A_yes) of the last token."""
    with torch.no_grad():
        states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        found = []
        for layer, state in zip(model.model.layers, states, strict=False):
            normed, own = layer.input_layernorm(state)[0], layer.self_attn
            queries, keys = own.q_proj(normed[-1]).tolist(), own.k_proj(normed).tolist()
            found.append([])
            for head in range(HEADS):
                group = head // (HEADS // GROUPS)
                query = rotated(queries[head * SIZE : (head + 1) * SIZE], len(ids) - 1)
                weights = []
                for place, key in enumerate(keys):
                    turned = rotated(key[group * SIZE : (group + 1) * SIZE], place)
                    weights.append(math.exp(sum(q * k for q, k in zip(query, turned, strict=True)) / math.sqrt(SIZE)))
                on_no, on_yes = (sum(weights[at] for at in some) / len(some) / sum(weights) for some in (no, yes))
                found[-1].append((on_no + on_yes) * math.log(on_no / on_yes))
    return found


@pytest.mark.parametrize("chat_template", [tiny.CHATML, None], ids=["chat", "plain"])
def test_scores_equal_an_independent_loop(chat_template):
    tokenizer, model = tiny.tokenizer(chat_template), tiny.llama()
    both = yesno.asked([QUESTION])
    assert [one.instruction for one in both] == ["Answer Yes or No.", "Answer No or Yes."]
    located = [heads.locate(tokenizer, one) for one in both]
    expected = torch.zeros(2, HEADS)
    for one, turned in zip(located, (False, True), strict=True):
        yes, no = places(one.ids, "Yes", turned), places(one.ids, "No", turned)
        assert (one.yes, one.no) == (yes, no)
        expected += torch.tensor(by_hand(model, one.ids, yes, no)) / 2
    before = model.config._attn_implementation
    found = heads.scores(model, located)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)
    assert found.abs().max() > 1e-3 and model.config._attn_implementation == before


def test_the_highest_above_zero_are_chosen():
    found = torch.tensor([[0.1, -0.3, 0.0], [0.3, 0.2, -0.1]])
    assert heads.highest(found, 2) == ["L1H0", "L1H1"]
    assert heads.highest(found, 9) == ["L1H0", "L1H1", "L0H0"]
