"""Attention over trees on a CPU, as one operation with a backward pass of its own.

torch's fused kernel is slow at these shapes, above all backwards, and would be called once a segment with copies of
the prompt's keys, which autograd keeps. This operation multiplies block by block and keeps nothing but its inputs and
its output: scores are computed again in the backward pass.

Shapes: S tokens, A query heads, K key-value heads of G = A / K query heads each, D head size (of values, it may be
another one); of a block of queries, Q queries and L keys that some of them see.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from align.processor import small_products

QUERIES = 256  # of a block: its scores stay in a processor's cache, and a long prompt needs no square matrix


class _Block(NamedTuple):
    """Queries of one segment, and the keys that the last of them sees: its prompt's, then the segment's own."""

    first: int
    last: int  # behind the last query
    prefix: slice  # of the prompt's keys; empty for a prompt
    own: slice

    def keys(self, of: Tensor) -> Tensor:
        """(K, L, D) float32 of keys or values (K, S, D)."""
        own = of[:, self.own].float()
        return own if self.prefix.start == self.prefix.stop else torch.cat([of[:, self.prefix].float(), own], 1)

    def add_keys(self, total: Tensor, grad: Tensor) -> None:
        """Adds the gradient (K, L, D) of `keys` to that of all, (K, S, D)."""
        border = self.prefix.stop - self.prefix.start
        total[:, self.prefix] += grad[:, :border]
        total[:, self.own] += grad[:, border:]


def _blocks(segments: list[int]) -> Iterator[_Block]:
    """Of `segments`, the flat list of (start, end, start of its prompt, end of it)."""
    for start, end, prefix, prefix_end in zip(*(segments[at::4] for at in range(4)), strict=True):
        for first in range(start, end, QUERIES):
            last = min(first + QUERIES, end)
            yield _Block(first, last, slice(prefix, prefix_end), slice(start, last))


def _grouped(of: Tensor, block: _Block, kv_heads: int) -> Tensor:
    """(K, G Q, D) float32 of the block's queries in (A, S, D): query heads that share keys form one matrix."""
    return of[:, block.first : block.last].float().reshape(kv_heads, -1, of.shape[-1])


def _probabilities(queries: Tensor, keys: Tensor, block: _Block) -> Tensor:
    """(K, G Q, L) softmax of the scores of scaled `queries` (K, G Q, D), each seeing what is before it."""
    scores = torch.bmm(queries, keys.transpose(1, 2))
    count = block.last - block.first
    ahead = torch.full((count, count), -torch.inf).triu(1)  # to add is several times as fast as to fill
    scores.view(len(keys), -1, count, keys.shape[1])[..., -count:].add_(ahead)
    return scores.softmax(-1)


@torch.library.custom_op("align::tree_attention", mutates_args=())
def tree_attention(query: Tensor, key: Tensor, value: Tensor, segments: list[int], scaling: float) -> Tensor:
    """(S, A, D) attention of `query` (A, S, D) to `key` and `value` (K, S, D), in their dtype, products in float32.

    `segments`: start, end, start of its prompt and end of it, of each segment, flat; see `align.data.layout.packed`.
    """
    heads, tokens, _ = query.shape
    out = query.new_empty(tokens, heads, value.shape[-1])
    with small_products():
        for block in _blocks(segments):
            keys, values = block.keys(key), block.keys(value)
            share = _probabilities(_grouped(query, block, len(key)).mul(scaling), keys, block)
            found = torch.bmm(share, values).view(heads, -1, value.shape[-1])
            out[block.first : block.last] = found.transpose(0, 1)
    return out


@tree_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, segments: list[int], scaling: float) -> Tensor:
    return query.new_empty(query.shape[1], query.shape[0], value.shape[-1])


@torch.library.custom_op("align::tree_attention_backward", mutates_args=())
def _tree_attention_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, segments: list[int], scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value from that of the output, `grad` (S, A, D)."""
    heads, _, size = query.shape
    of_query = torch.empty_like(query)
    of_key, of_value = (torch.zeros(of.shape, dtype=torch.float32) for of in (key, value))
    grad, out = grad.transpose(0, 1), out.transpose(0, 1)
    with small_products():
        for block in _blocks(segments):
            keys, values = block.keys(key), block.keys(value)
            queries = _grouped(query, block, len(key)).mul(scaling)
            of_out = _grouped(grad, block, len(key))
            share = _probabilities(queries, keys, block)
            block.add_keys(of_value, torch.bmm(share.transpose(1, 2), of_out))
            mean = (of_out * _grouped(out, block, len(key))).sum(-1, keepdim=True)  # of the slopes, under the softmax
            slope = torch.bmm(of_out, values.transpose(1, 2)).sub_(mean).mul_(share)
            block.add_keys(of_key, torch.bmm(slope.transpose(1, 2), queries))
            found = torch.bmm(slope, keys).mul_(scaling).view(heads, -1, size)
            of_query[:, block.first : block.last] = found
    return of_query, of_key.to(key.dtype), of_value.to(value.dtype)


@_tree_attention_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, segments: list[int], scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _keep(ctx, inputs: tuple, output: Tensor) -> None:
    query, key, value, ctx.segments, ctx.scaling = inputs
    ctx.save_for_backward(query, key, value, output)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return *_tree_attention_backward(grad, *ctx.saved_tensors, ctx.segments, ctx.scaling), None, None


torch.library.register_autograd("align::tree_attention", _backward, setup_context=_keep)
