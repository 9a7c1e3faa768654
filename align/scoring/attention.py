"""Attention over trees: the packed layout, in which the responses of a prompt share its tokens.

A model is made ready by `align.scoring.support.use_packed`, which sets an attention function of ours through
transformers' AttentionInterface; no model code is patched. That function knows the packed layout by its mask
(segments, see `align.data.layout.packed`, or a FlexAttention block mask made from them), and does for every other
mask what transformers does, so that generation and the padded layout stay as they were.

Shapes: S tokens, G segments, A query heads, K key-value heads, D head size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from align.data.layout import Tokens
from align.scoring.segments import tree_attention

NAME = "shared_prefix"


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | BlockMask | None, **options
) -> tuple[Tensor, None]:
    """(1, S, A, D) attention of `query` (1, A, S, D) to `key` and `value` (1, K, S, D), as transformers calls it."""
    if isinstance(attention_mask, BlockMask):
        query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast a rotation leaves float32
        return ALL_ATTENTION_FUNCTIONS["flex_attention"](module, query, key, value, attention_mask, **options)
    scaling, softcap = options.get("scaling"), options.get("softcap")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if attention_mask is not None and attention_mask.dtype == torch.long:
        unknown = [name for name in ("s_aux", "position_bias") if options.get(name) is not None]
        if unknown:
            raise NotImplementedError(f"attention with {' and '.join(unknown)}")
        dropout = options.get("dropout", 0.0)
        return _over_segments(query, key, value, attention_mask[0, 0], scaling, softcap, dropout), None
    if softcap is None:
        return ALL_ATTENTION_FUNCTIONS["sdpa"](module, query, key, value, attention_mask, **options)
    seen = causal(query.shape[2], key.shape[2], query.device) if attention_mask is None else attention_mask
    return _explicit(query, key, value, seen, scaling, softcap, options.get("dropout", 0.0)).transpose(1, 2), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def _over_segments(
    query: Tensor, key: Tensor, value: Tensor, segments: Tensor, scaling: float, softcap: float | None, dropout: float
) -> Tensor:
    """(1, S, A, D): segment by segment, since no fused kernel with a backward pass takes trees on a CPU."""
    if softcap is None and not dropout:
        return tree_attention(query[0], key[0], value[0], segments.flatten().tolist(), scaling)[None]
    spans = segments.tolist()
    lengths = [end - start for start, end, _, _ in spans]
    # The split is one operation with one gradient: slices would each get a gradient as long as the whole.
    parts = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
    prompts: dict[int, tuple[Tensor, Tensor]] = {}  # where a prompt starts -> its keys and values
    outputs = []
    for (start, _, prefix, prefix_end), (q, k, v) in zip(spans, parts, strict=True):
        if prefix == prefix_end:
            prompts[start] = k, v
        else:
            k, v = (torch.cat(pair, 2) for pair in zip(prompts[prefix], (k, v), strict=True))
        seen = causal(q.shape[2], k.shape[2], q.device)
        outputs.append(_explicit(q, k, v, seen, scaling, softcap, dropout))
    return torch.cat(outputs, 2).transpose(1, 2)


def causal(queries: int, keys: int, device: torch.device) -> Tensor:
    """(queries, keys) bool: the last query sees all keys, each one before it one less."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _explicit(
    q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scaling: float, softcap: float | None, dropout: float
) -> Tensor:
    """(1, A, Q, D) attention as it is defined. `softcap` bounds its scores (Gemma 2)."""
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = q @ k.transpose(2, 3) * scaling
    scores = torch.tanh(scores / softcap) * softcap if softcap else scores
    lowest = torch.finfo(scores.dtype).min  # not -inf: padding on the left sees nothing, and must not become nan
    weights = scores.masked_fill(~seen, lowest).softmax(-1, dtype=torch.float32).to(q.dtype)
    return nn.functional.dropout(weights, dropout) @ v


def block_mask(segments: Tensor, tokens: int) -> BlockMask:
    """The same trees for FlexAttention, from segments (1, 1, G, 4) over `tokens` tokens."""
    start, end, prefix, _ = segments[0, 0].unbind(-1)
    own = torch.repeat_interleave(start, end - start)  # (S,) where the segment of each token begins
    prompt = torch.repeat_interleave(prefix, end - start)  # (S,) where its prompt begins

    def sees(batch, head, query, key):
        return (key <= query) & ((own[key] == own[query]) | (own[key] == prompt[query]))

    return create_block_mask(sees, None, None, tokens, tokens, device=segments.device)


def inputs(tokens: Tokens) -> dict[str, Tensor | BlockMask]:
    """What the model is called with. On a GPU, segments become a FlexAttention block mask."""
    given = tokens._asdict()
    del given["positions"]
    if tokens.position_ids is None:
        del given["position_ids"]
    elif tokens.input_ids.is_cuda:
        given["attention_mask"] = block_mask(tokens.attention_mask, tokens.input_ids.shape[1])
    return given
