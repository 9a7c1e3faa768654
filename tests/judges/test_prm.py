"""Process reward models: real tiny ones, with a head on tokens and with words."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForSequenceClassification, LlamaForTokenClassification

from align import models
from align.data.examples import Example
from align.errors import UserError
from align.judges import Answer
from align.judges.options import PrmJudge as Options
from align.judges.prm import PrmJudge
from tests import tiny

EXAMPLE = Example((("user", "1+2+3?"),), (), "test", "rows.jsonl:1")
ANSWER = Answer(EXAMPLE, "1+2=3\n3+3=6", (6, 11))


def saved(folder, kind, labels: int, **config):
    torch.manual_seed(0)
    own = LlamaConfig(
        vocab_size=259, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=256, initializer_range=0.3, num_labels=labels, pad_token_id=258, **config,
    )  # fmt: skip
    kind(own).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def judge(folder, **given) -> PrmJudge:
    options = Options(path=str(folder), **given)
    return PrmJudge(*models.load_reward_model(options.path, has_token_head=options.good_token is None), options)


def logits_of(own: PrmJudge, text: str) -> torch.Tensor:
    ids = own.tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return own.model(ids).logits[0, -1]


@pytest.mark.parametrize("labels", [1, 2])
def test_a_head_on_tokens_is_read_behind_each_step(tmp_path, labels):
    own = judge(saved(tmp_path, LlamaForTokenClassification, labels), separator="#\n")
    scores = own.score([ANSWER, ANSWER])
    assert scores[0] == scores[1] and scores[0][0] != scores[0][1]
    prompt = "<|im_start|>user\n1+2+3?<|im_end|>\n<|im_start|>assistant\n"
    for read, score in ((f"{prompt}1+2=3#\n", scores[0][0]), (f"{prompt}1+2=3#\n3+3=6#\n", scores[0][1])):
        logits = logits_of(own, read)
        wanted = logits.sigmoid()[0] if labels == 1 else logits.softmax(-1)[1]
        assert score == pytest.approx(float(wanted), abs=1e-6)


def test_words_of_a_language_model(tmp_path):
    tiny.save(tmp_path)
    read = "<|im_start|>user\n1+2+3?<|im_end|>\n<|im_start|>assistant\n1+2=3\n"
    both, one = judge(tmp_path, good_token="+", bad_token="-"), judge(tmp_path, good_token="+")
    plus, minus = both.tokenizer("+-")["input_ids"]
    logits = logits_of(both, read)
    assert both.score([ANSWER])[0][0] == pytest.approx(float((logits[plus] - logits[minus]).sigmoid()), abs=1e-6)
    assert one.score([ANSWER])[0][0] == pytest.approx(float(logits.softmax(-1)[plus]), abs=1e-6)


def test_models_without_the_right_head_are_refused(tmp_path):
    tiny.save(tmp_path / "words")
    with pytest.raises(UserError, match="has no head ForTokenClassification, but LlamaForCausalLM"):
        judge(tmp_path / "words")  # transformers would make up a random head
    with pytest.raises(UserError, match="has no head ForCausalLM"):
        judge(saved(tmp_path / "tokens", LlamaForTokenClassification, 2), good_token="+")
    with pytest.raises(UserError, match="has no head ForTokenClassification"):
        judge(saved(tmp_path / "sequence", LlamaForSequenceClassification, 1))
    with pytest.raises(UserError, match="tells 5 classes of tokens apart"):
        judge(saved(tmp_path / "five", LlamaForTokenClassification, 5))
    with pytest.raises(UserError, match="'good' is 4 tokens"):
        judge(tmp_path / "words", good_token="good")
    with pytest.raises(UserError, match="separator: makes no token"):
        judge(tmp_path / "words", good_token="+", separator="")


def test_steps_behind_the_longest_input_are_not_scored(tmp_path):
    own = judge(saved(tmp_path, LlamaForTokenClassification, 2))
    long = Answer(EXAMPLE, "a\n" + "b" * 300, (2, 302))
    scores = own.score([long])[0]
    assert scores[0] is not None and scores[1] is None
