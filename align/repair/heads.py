"""Which attention heads look at the negative candidate, whatever the question: the negative attention score.

NASA, https://arxiv.org/abs/2408.00137 (Yu et al., 2025). Of a head, over prompts that end in "Answer Yes or No.",

    mean of (A_no + A_yes) log(A_no / A_yes)

with A_yes and A_no its attention from the last token of the prompt, where the answer begins, to either candidate (the
mean over its tokens, if it is several). It is above 0 for a head that looks at "No" more, the further the more of its
attention the two get. Each question is asked with both orders of the candidates, and as many have the one answer as the
other: so a head that looks at the last word, or at the right one, comes out near 0.

This is our reading of the method. The paper's abstract says what is scored and that such heads are tuned; the formula
and all that is said of training (`align.repair.training`) are not checked against it.

Shapes: L layers, A heads, S tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from align.adapter_heads import name_of
from align.data.templates import prompt_text
from align.data.tokenize import encode_prompt
from align.errors import UserError
from align.repair.yesno import NO, YES, Asked
from align.scoring.head import causal_lm


@dataclass(frozen=True)
class Located:
    """A prompt in tokens, and which of them are the candidates."""

    ids: list[int]
    yes: list[int]
    no: list[int]


def locate(tokenizer, asked: Asked) -> Located:
    """Finds the candidates in a prompt. Raises UserError for a tokenizer that does not say where its tokens begin."""
    if not tokenizer.is_fast:
        raise UserError("model.path", "this tokenizer does not tell where its tokens begin", "use a fast tokenizer")
    text, ids = prompt_text(tokenizer, asked.prompt), encode_prompt(tokenizer, asked.prompt)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    begin, shift = text.rindex(asked.instruction), len(ids) - len(offsets)  # BOS may stand in front of plain text

    def tokens(word: str) -> list[int]:
        start = begin + asked.instruction.index(word)
        end = start + len(word)
        return [shift + index for index, (first, last) in enumerate(offsets) if first < end and last > start]

    return Located(ids, tokens(YES), tokens(NO))


@torch.no_grad()
def scores(model: nn.Module, prompts: Sequence[Located]) -> Tensor:
    """(L, A) the negative attention score of every head, the mean over the prompts, in nats.

    Leaves the model with the attention function it had. Raises UserError for one that does not show its attention.
    """
    inner, device = causal_lm(model), causal_lm(model).get_input_embeddings().weight.device
    before, total = inner.config._attn_implementation, torch.zeros(())
    inner.set_attn_implementation("eager")  # the only one that keeps the weights
    try:
        for one in tqdm(prompts, desc="scoring heads", unit="prompt", leave=False):
            shown = model(
                input_ids=torch.tensor([one.ids], device=device), output_attentions=True, use_cache=False,
                logits_to_keep=1,
            ).attentions  # fmt: skip
            if not shown or any(layer is None for layer in shown):
                raise UserError("model.path", "this model does not show its attention", "use a model of the Llama kind")
            last = torch.stack([layer[0, :, -1].float().cpu() for layer in shown])  # (L, A, S)
            no, yes = last[..., one.no].mean(-1), last[..., one.yes].mean(-1)
            tiny = torch.finfo(torch.float32).tiny  # attention may underflow to 0
            total = total + (no + yes) * (no.clamp(min=tiny) / yes.clamp(min=tiny)).log()
    finally:
        inner.set_attn_implementation(before)
    return total / len(prompts)


def highest(found: Tensor, count: int) -> list[str]:
    """The names of the `count` heads with the highest scores (L, A), of those above 0, the highest first."""
    order = found.flatten().argsort(descending=True, stable=True)[:count].tolist()
    return [name_of(*divmod(index, found.shape[1])) for index in order if found.flatten()[index] > 0]
