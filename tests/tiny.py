"""A tiny random Llama, a byte-level tokenizer with a ChatML template, rows and batches: no file, no network."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from align.data import sources
from align.data.examples import Example, Response
from align.data.ledger import Ledger
from align.data.tokenize import TokenizedRow, encode_row
from align.objectives import NEGATIVE, POSITIVE, Batch

torch.set_num_threads(1)  # the threads of so small a model wait for each other longer than they compute

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|pad|>"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte and three special ones, 259 in all: any text encodes. Ends a turn with `<|im_end|>`."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([START, END, PAD])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def llama(seed: int = 0, **config) -> LlamaForCausalLM:
    """Two layers, hidden size 32, four heads over two key-value heads; in evaluation mode, the same for a seed.

    The weights are larger than a fresh model's, so that its next-token distribution is not nearly uniform.
    """
    defaults = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": 0.1,
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": 257,  # END
        "pad_token_id": 258,  # PAD
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**defaults | config)).eval()


class Wrapper(nn.Module):
    """Holds a model as `module`, as DDP and DeepSpeed do, and counts the calls of its own forward."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module, self.calls = module, 0

    def forward(self, *args, **kwargs):
        self.calls += 1
        return self.module(*args, **kwargs)


def save(folder: str | Path, seed: int = 0, **config) -> None:
    """Writes model and tokenizer to a folder that `from_pretrained` loads."""
    llama(seed, **config).save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def school(folder: str | Path) -> None:
    """Writes a model that has learned some hundred steps from the benign and the retain rows, byte by byte."""
    model, encoder = llama(hidden_size=64, intermediate_size=128), tokenizer()
    texts = []
    for name, split in (("builtin:benign", "heldout"), ("builtin:retain", "train")):
        for example in sources.read(name, split, on_bad_rows="stop", ledger=Ledger()):
            messages = [{"role": role, "content": content} for role, content in example.prompt]
            messages.append({"role": "assistant", "content": example.texts("positive")[0]})
            texts.append(encoder.apply_chat_template(messages, tokenize=False))
    ids = [encoder(text, add_special_tokens=False)["input_ids"][:256] for text in texts]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    draw = torch.Generator().manual_seed(0)
    for _ in range(300):
        chosen = [ids[index] for index in torch.randint(len(ids), (8,), generator=draw).tolist()]
        width = max(map(len, chosen))
        batch = torch.tensor([one + [258] * (width - len(one)) for one in chosen])
        loss = model(input_ids=batch, labels=batch.masked_fill(batch == 258, -100)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 2.4, "bytes of English: a model that knows nothing has 5.6 nats"
    model.save_pretrained(folder)
    encoder.save_pretrained(folder)


def row(
    prompt: str,
    *,
    positives: Sequence[str] = (),
    negatives: Sequence[str] = (),
    samples: Sequence[str] = (),
    place: str = "rows.jsonl:1",
    encoder: PreTrainedTokenizerFast | None = None,
) -> TokenizedRow:
    """One record through the real encoding."""
    texts = {"positive": positives, "negative": negatives, "sample": samples}
    responses = tuple(Response(text, role) for role, group in texts.items() for text in group)
    example = Example(prompt, responses, "tiny", place)
    return encode_row(encoder or tokenizer(), example, roles={1, 0, -1}, max_length=512, ledger=Ledger())


def batch(*prompts: Sequence[tuple[int, Sequence[float]]], seed: int = 0) -> Batch:
    """A batch of given log-ratios: for each prompt its responses as (role, log-ratio of each token).

    The reference's log-probs are random, the policy's are theirs plus the log-ratios. All pairs are in `pairs`.
    """
    flat = [(index, role, ratios) for index, responses in enumerate(prompts) for role, ratios in responses]
    width = max(len(ratios) for _, _, ratios in flat)
    mask = torch.tensor([[column < len(ratios) for column in range(width)] for _, _, ratios in flat])
    ratios = torch.tensor([[*ratios, *[0.0] * (width - len(ratios))] for _, _, ratios in flat])
    ref_logps = -torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) * 4 * mask
    good = [(prompt, n) for n, (prompt, role, _) in enumerate(flat) if role == POSITIVE]
    bad = [(prompt, n) for n, (prompt, role, _) in enumerate(flat) if role == NEGATIVE]
    pairs = [(one, other) for prompt, one in good for same, other in bad if prompt == same]
    return Batch(
        logps=(ref_logps + ratios).requires_grad_(),
        mask=mask,
        role=torch.tensor([role for _, role, _ in flat]),
        prompt=torch.tensor([prompt for prompt, _, _ in flat]),
        pairs=torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        ref_logps=ref_logps,
    )


def coarse_kl(log_p: torch.Tensor, log_q: torch.Tensor, likeliest: Sequence[int]) -> float:
    """KL(p || q) of two distributions (V,), all tokens but the `likeliest` taken together, by a plain loop."""
    p, q = log_p.double().exp().tolist(), log_q.double().exp().tolist()
    rest = [token for token in range(len(p)) if token not in set(likeliest)]
    classes = [(p[token], q[token]) for token in likeliest]
    classes.append((sum(p[token] for token in rest), sum(q[token] for token in rest)))
    return sum(one * math.log(one / other) for one, other in classes)
