"""Answers of a model: the likeliest tokens, log-probs of its own, and a model that is left as it was.

How drawn tokens are distributed, and what decides a draw, `tests/negatives/test_sampling.py` looks at.
"""

from __future__ import annotations

import pytest
import torch

from align.data.tokenize import encode_prompt
from align.generation import draw, generate
from align.negatives.options import Sampling
from tests import tiny

TOKENIZER = tiny.tokenizer()
END = TOKENIZER.eos_token_id
PROMPTS = ("Why?", "And where is the other one of them?", "Say it.", "How much is the fish, and who asks?", "Go on")


@pytest.fixture(scope="module")
def model():
    return tiny.llama(initializer_range=0.25)


def test_greedy_answers_are_the_likeliest_tokens(model):
    prompts = [encode_prompt(TOKENIZER, text) for text in PROMPTS]
    for prompt, answer in zip(prompts, generate(model, TOKENIZER, prompts, 5), strict=True):
        expected: list[int] = []
        while len(expected) < 5 and END not in expected:
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *expected]]), use_cache=False).logits
            expected.append(int(logits[0, -1].argmax()))
        assert answer == expected


def test_settings_are_restored_if_generation_fails(model):
    own = model.generation_config

    def broken(input_ids, scores):
        raise RuntimeError("out of memory")

    model.train()
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(model, TOKENIZER, [[1, 2, 3]], 4, [broken])
    assert model.generation_config is own and model.training
    model.eval()


@pytest.mark.parametrize("use_cache", [True, False])
def test_use_of_the_cache_is_restored(use_cache):
    """It is part of the configuration that is saved with the trained model."""
    model = tiny.llama()
    model.config.use_cache = use_cache
    generate(model, TOKENIZER, [[1, 2, 3]], 2)
    assert model.config.use_cache is use_cache


@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_log_probs_are_the_models_own(temperature):
    """Of every token drawn, the end of the turn included, whatever temperature and top-p it was drawn with."""
    model = tiny.llama(initializer_range=0.25)
    model.generation_config.eos_token_id = [257, *range(20)]
    config = Sampling(k=3, temperature=temperature, top_p=0.9, max_new_tokens=40)
    prompts = [TOKENIZER(text)["input_ids"] for text in ("Why?", "And who was it in the end?")]
    samples = draw(model, TOKENIZER, prompts, ["a", "b"], config, 3)
    lengths = {len(ids) for answers in samples for ids, _ in answers}
    assert len(lengths) > 1, "answers must end at different places for this to mean anything"
    for prompt, answers in zip(prompts, samples, strict=True):
        for ids, logps in answers:
            with torch.no_grad():
                wanted = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            assert logps == pytest.approx(wanted[range(len(ids)), ids].tolist(), abs=1e-4)
