"""The likelihood ratio: what is saved and loaded, scores against plain PEFT, decoding with two caches."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GenerationConfig

from align import likelihood_ratio, models
from align.data.tokenize import encode_prompt, encode_response
from align.errors import UserError
from align.likelihood_ratio import LikelihoodRatioModel
from align.objectives import NEGATIVE, POSITIVE
from align.recipe import Adapter, Model
from align.run import HEADS_FILE
from tests import tiny

PROMPT, ANSWERS = "Where is it?", ["Here.", "I know not.", "Over the hill it is, far away."]
PROMPTS = ["Where is it?", "Hi", "Is that the longest of the three prompts?"]
NAMES = {POSITIVE: "positive", NEGATIVE: "negative"}


def save(folder: Path, model: Path, heads: list[str]) -> Path:
    """Heads that say something, saved as a run saves them."""
    policy = models.add_adapter(tiny.llama(), Adapter(rank=4), 0, heads)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=draw) * 0.15)
    policy.save_pretrained(folder)
    (folder / HEADS_FILE).write_text(likelihood_ratio.describe(Model(path=str(model)), heads))
    return folder


@pytest.fixture(scope="module")
def final(tiny_model, tmp_path_factory) -> Path:
    return save(tmp_path_factory.mktemp("run") / "final", tiny_model, ["positive", "negative"])


@pytest.fixture
def ratio(final) -> LikelihoodRatioModel:
    return LikelihoodRatioModel.from_pretrained(final, arithmetic="fp32")


def plain(model: Path, final: Path, name: str):
    """The base with one adapter, by PEFT alone."""
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), str(final / name)).eval()


def plain_logps(model, tokenizer, answer: str) -> float:
    prompt = encode_prompt(tokenizer, PROMPT)
    ids = torch.tensor([[*prompt, *encode_response(tokenizer, PROMPT, prompt, answer)]])
    with torch.no_grad():
        logps = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logps.gather(-1, ids[0, len(prompt) :, None]).sum().item()


def test_saved_adapters_are_ordinary_peft_adapters(ratio, tiny_model, final):
    """Loaded by PEFT alone they give the same log-probs, and so does the base without any."""
    found = ratio.logps(PROMPT, ANSWERS)
    assert list(found) == ["base", "positive", "negative"]
    for name, values in found.items():
        base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        other = base if name == "base" else plain(tiny_model, final, name)
        expected = [plain_logps(other, ratio.tokenizer, answer) for answer in ANSWERS]
        assert values.tolist() == pytest.approx(expected, abs=1e-4)
    assert (found["positive"] - found["negative"]).abs().min() > 0.01


def test_score_is_the_weighted_difference(ratio):
    logps = ratio.logps(PROMPT, ANSWERS)
    ratio.positive_weight, ratio.negative_weight = 0.5, 0.25
    scores = ratio.score(PROMPT, ANSWERS)
    torch.testing.assert_close(scores, 0.5 * logps["positive"] - 0.25 * logps["negative"])
    lengths = torch.tensor([len(answer) + 1 for answer in ANSWERS])  # a token a byte, and the end of the turn
    torch.testing.assert_close(ratio.score(PROMPT, ANSWERS, normalize=True), scores / lengths)
    assert ratio.rank(PROMPT, ANSWERS) == sorted(range(3), key=lambda index: -scores[index])
    assert ratio.rank(PROMPT, ANSWERS, normalize=True) == sorted(range(3), key=lambda n: -scores[n] / lengths[n])


@pytest.mark.parametrize("tokens", [16, 60, 100_000])
def test_scores_do_not_depend_on_how_many_pass_at_once(ratio, tokens):
    """Nor on which other answers are scored with it."""
    whole = ratio.logps(PROMPT, ANSWERS)
    for name, values in ratio.logps(PROMPT, ANSWERS, tokens_at_once=tokens).items():
        assert values.tolist() == pytest.approx(whole[name].tolist(), abs=1e-5)
    alone = [ratio.logps(PROMPT, [answer])["negative"].item() for answer in ANSWERS]
    assert alone == pytest.approx(whole["negative"].tolist(), abs=1e-5)


def test_without_a_positive_head_the_base_is_it(tiny_model, tmp_path):
    folder = save(tmp_path / "final", tiny_model, ["negative"])
    ratio = LikelihoodRatioModel.from_pretrained(tmp_path, arithmetic="fp32")  # the run's folder does as well
    logps = ratio.logps(PROMPT, ANSWERS)
    assert list(logps) == ["base", "negative"] and not (folder / "positive").exists()
    torch.testing.assert_close(ratio.score(PROMPT, ANSWERS), logps["base"] - logps["negative"])


def test_without_a_negative_head_the_positive_one_scores_alone(tiny_model, tmp_path):
    save(tmp_path / "final", tiny_model, ["positive"])
    ratio = LikelihoodRatioModel.from_pretrained(tmp_path, arithmetic="fp32")
    assert ratio.negative_weight == 0
    torch.testing.assert_close(ratio.score(PROMPT, ANSWERS), ratio.logps(PROMPT, ANSWERS)["positive"])


def greedy(model, tokenizer, prompt: str, tokens: int, choose=None) -> list[int]:
    """Answers token by token without a cache, one prompt at a time."""
    ids, answer = encode_prompt(tokenizer, prompt), []
    while len(answer) < tokens and (not answer or answer[-1] != 257):
        with torch.no_grad():
            answer.append(int(choose([*ids, *answer])))
    return answer


def text(ratio, ids: list[int]) -> str:
    return ratio.tokenizer.decode(ids, skip_special_tokens=True).strip()


def test_generation_equals_a_plain_loop(ratio, tiny_model, final):
    """The ratio over the whole vocabulary, masked, from two PEFT models: batches, padding and caches have no say."""
    ratio.negative_weight, heads = 0.4, [plain(tiny_model, final, name) for name in NAMES.values()]

    def choose(ids: list[int]) -> torch.Tensor:
        good, bad = (head(input_ids=torch.tensor([ids])).logits[0, -1].log_softmax(-1) for head in heads)
        return (good - 0.4 * bad).masked_fill(good.exp() < 0.2 * good.exp().max(), -torch.inf).argmax()

    expected = [text(ratio, greedy(None, ratio.tokenizer, prompt, 12, choose)) for prompt in PROMPTS]
    assert ratio.generate(PROMPTS, max_new_tokens=12, plausibility=0.2) == expected
    assert ratio.generate(PROMPTS, max_new_tokens=12, plausibility=0.2, cached=False) == expected
    assert [ratio.generate([one], max_new_tokens=12, plausibility=0.2)[0] for one in PROMPTS] == expected
    ratio.negative_weight = 0.0
    assert ratio.generate(PROMPTS, max_new_tokens=12, plausibility=0.2) != expected, "the negative head has a say"


@pytest.mark.parametrize("plausibility", [0.0, 0.1, 1.0])
def test_without_the_negative_head_it_is_the_positive_heads_own_generation(ratio, tiny_model, final, plausibility):
    ratio.negative_weight = 0.0
    head, config = plain(tiny_model, final, "positive"), GenerationConfig(max_new_tokens=12, eos_token_id=257)
    expected = []
    for prompt in PROMPTS:
        ids = torch.tensor([encode_prompt(ratio.tokenizer, prompt)])
        written = head.generate(input_ids=ids, generation_config=config, do_sample=False, pad_token_id=258)
        expected.append(text(ratio, written[0, ids.shape[1] :].tolist()))
    assert ratio.generate(PROMPTS, max_new_tokens=12, plausibility=plausibility) == expected


def test_cached_scores_equal_uncached_ones_at_every_step(ratio):
    lengths, width = [5, 9, 2], 9
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(250, (3, width + 6), generator=draw)
    cached, bare = (ratio.processor(lengths, plausibility=0.05, cached=one) for one in (True, False))
    for end in range(width, width + 7):
        scores = torch.randn(3, 259, generator=draw)
        one, other = cached(ids[:, :end], scores), bare(ids[:, :end], scores)
        assert torch.equal(one.isinf(), other.isinf()) and 0 < one.isinf().sum() < one.numel()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    assert cached.negative.seen == width + 6 and bare.negative.cache is None


def test_only_plausible_tokens_are_open(ratio):
    """Tokens with p+ >= c max p+, and no others, whatever the negative head says."""
    ids, scores = torch.randint(250, (2, 4)), torch.randn(2, 259)
    open_ = ratio.processor([4, 4], plausibility=0.3)(ids, scores).isfinite()
    probs = scores.softmax(-1)
    assert torch.equal(open_, probs >= 0.3 * probs.max(-1, keepdim=True).values)
    assert ratio.processor([4, 4], plausibility=0.0)(ids, scores).isfinite().all()


def test_several_samples_a_prompt_go_on_from_the_same_prompt(ratio):
    """transformers repeats each prompt for num_return_sequences; padding goes with it."""
    ids = torch.randint(250, (4, 6))
    ids[:2, :3] = 258
    four = ratio.processor([3, 3, 6, 6], plausibility=0.0)
    two = ratio.processor([3, 6], plausibility=0.0)
    scores = torch.randn(4, 259)
    torch.testing.assert_close(two(ids, scores), four(ids, scores))


def test_beams_are_refused(ratio):
    processor = ratio.processor([4, 4], plausibility=0.1)
    processor(torch.randint(250, (2, 4)), torch.randn(2, 259))
    with pytest.raises(ValueError, match="do not go on from 2 prompts"):
        processor(torch.randint(250, (3, 5)), torch.randn(3, 259))
    with pytest.raises(ValueError, match="do not go on from"):
        processor(torch.randint(250, (2, 4)), torch.randn(2, 259))


def test_mistakes_are_named(ratio, final, tmp_path, tiny_model):
    with pytest.raises(UserError, match=r"there is no likelihood_ratio\.json, neither here nor in final/"):
        LikelihoodRatioModel.from_pretrained(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(final, broken)
    (broken / HEADS_FILE).write_text('{"heads": ["neutral"]}')
    with pytest.raises(UserError, match="is not what a run writes"):
        LikelihoodRatioModel.from_pretrained(broken)
    shutil.copy(final / HEADS_FILE, broken)
    shutil.rmtree(broken / "negative")
    with pytest.raises(UserError, match="negative: holds no adapter"):
        LikelihoodRatioModel.from_pretrained(broken)
    other = tmp_path / "other"
    tiny.save(other, hidden_size=16)
    with pytest.raises(UserError, match="cannot be loaded onto this base"):
        LikelihoodRatioModel.from_pretrained(final, model=Model(path=str(other)))
    with pytest.raises(UserError, match="there are none"):
        ratio.score(PROMPT, [])
    with pytest.raises(UserError, match="does not fit behind the prompt"):
        ratio.score(PROMPT, ["x" * 3000])
    with pytest.raises(UserError, match=r"outside of 0\.\.1"):
        ratio.processor([4], plausibility=2.0)


def test_the_description_can_be_moved_with_its_folder(final, tiny_model):
    given = json.loads((final / HEADS_FILE).read_text())
    assert given["model"]["path"] == str(tiny_model.resolve()) and given["heads"] == ["positive", "negative"]
    assert json.loads(likelihood_ratio.describe(Model(), ["negative"]))["model"]["path"] == "smollm2-135m-instruct"
