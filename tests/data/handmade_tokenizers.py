"""Tokenizers of several kinds of models, made in memory, and what each makes of a prompt, written out by hand."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "Say hello, please. Hello. How are you today? I am fine, thank you very much!",
    "The capital of France is Paris. Is it? Yes, it is. No, it is not. Go away.",
    "system user assistant You are a helpful assistant. Be brief. [INST] Hi [/INST] Human: Assistant:",
] * 20


@functools.cache
def byte_level(special: tuple[str, ...]) -> Tokenizer:
    """Byte-level BPE, as Llama 3, Qwen and SmolLM2 have it: every text comes back from its tokens exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    return tokenizer


def build(
    special: tuple[str, ...], *, template: str | None, around: str = "$A", **names: str
) -> PreTrainedTokenizerFast:
    """A tokenizer; `around` is what it writes around a text if special tokens are asked for."""
    inner = Tokenizer.from_str(byte_level(special).to_str())
    ids = [(token, inner.token_to_id(token)) for token in special]
    inner.post_processor = processors.TemplateProcessing(single=around, special_tokens=ids)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, clean_up_tokenization_spaces=False, **names)
    tokenizer.chat_template = template
    return tokenizer


CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def chatml(template: str = CHATML) -> PreTrainedTokenizerFast:
    """As SmolLM2: a default system prompt, a line break behind the end of each turn, no BOS."""
    return build(CHATML_TOKENS, template=template, bos_token="<|im_start|>", eos_token="<|im_end|>")


LLAMA3 = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")


def llama3(eos_token: str = "<|eot_id|>") -> PreTrainedTokenizerFast:
    """As Llama 3: header ids, contents trimmed, BOS both in the template and from the tokenizer."""
    return build(
        LLAMA3_TOKENS,
        template=LLAMA3,
        around="<|begin_of_text|> $A",
        bos_token="<|begin_of_text|>",
        eos_token=eos_token,
    )


MISTRAL = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}"
    "{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ message['content'] + eos_token + ' ' }}{% endif %}"
    "{% endfor %}"
)


def mistral() -> PreTrainedTokenizerFast:
    """As Mistral: no generation prompt, BOS and EOS in the template, a space behind EOS, no system message."""
    return build(("<s>", "</s>"), template=MISTRAL, around="<s> $A", bos_token="<s>", eos_token="</s>")


def plain(around: str = "<s> $A") -> PreTrainedTokenizerFast:
    """A base model: no chat template, BOS from the tokenizer."""
    return build(("<s>", "</s>"), template=None, around=around, bos_token="<s>", eos_token="</s>")


GEMMA = (
    "{{ bos_token }}"
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<start_of_turn>' + message['role'] + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>assistant\n' }}{% endif %}"
)
SKIPS_SYSTEM = GEMMA.replace("{{ raise_exception('System role not supported') }}", "{% set messages = messages[1:] %}")


def gemma(template: str = GEMMA) -> PreTrainedTokenizerFast:
    """As Gemma: an end of turn that is special, but no named token; no system message."""
    special = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
    return build(special, template=template, around="<bos> $A", bos_token="<bos>", eos_token="<eos>")


TOKENIZERS = {"chatml": chatml, "llama3": llama3, "mistral": mistral, "plain": plain}
END_OF_TURN = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "plain": "</s>"}

# The prompt "Hi" as each model reads it, written out by hand
SAID = {
    "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hi [/INST]",
    "plain": "<s>Hi",
}

# user, assistant, user: the earlier answer is part of the prompt
TURNS = (("user", "Hi"), ("assistant", "Hello."), ("user", "Go away."))
SAID_IN_TURNS = {
    "chatml": "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nGo away.<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHello.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nGo away.<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s>[INST] Hi [/INST]Hello.</s> [INST] Go away. [/INST]",
}


def text_of(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=False)
