"""Log-probs of given tokens through a linear LM head, tile by tile: tokens by words, never a whole matrix.

Shapes: M positions, C of them in a tile, H hidden size, V words, B of them in a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from align.scoring import products

LOGITS_AT_ONCE = {"cpu": 2**21, "cuda": 2**25}  # of a tile: 8 MiB stay in a CPU's cache; a GPU wants large products


@dataclass(frozen=True)
class Transform:
    """What a model does to its head's output: logit scale (Cohere, Granite), then soft-capping (Gemma)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        logits = raw if self.scale == 1.0 else raw * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def times_slope(self, values: Tensor, logits: Tensor) -> Tensor:
        """`values` times the derivative of the logits by the head's output."""
        values = values if self.scale == 1.0 else values * self.scale
        return values * (1 - (logits / self.cap) ** 2) if self.cap else values


class TargetLogps(torch.autograd.Function):
    """(M,) log-prob of `targets` (M,) after `hidden` (M, H), through the head's weight (V, H) and bias (V,).

    With d the one-hot target minus the probabilities, times the transform's slope, the gradient of a log-prob is
    d W for its hidden state and d (x) hidden for the weight. A frozen head's d W is summed in the forward pass, word
    block by word block as the softmax goes (rescaled whenever a larger logit comes), so that the backward pass needs
    no logits. A head that trains needs them again, since d (x) hidden must be weighed before it is summed.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, transform, wants_grad, fast):
        if len(targets) and int(targets.max()) >= len(weight):
            raise IndexError(f"token {int(targets.max())} is outside the model's vocabulary of {len(weight)}")
        trains = wants_grad and (weight.requires_grad or (bias is not None and bias.requires_grad))
        early = wants_grad and not trains
        largest = torch.full(targets.shape, -torch.inf, device=hidden.device)
        total, chosen = torch.zeros_like(largest), torch.zeros_like(largest)
        pull = torch.zeros(hidden.shape, device=hidden.device) if early else None  # sum over words of exp(logit) W
        for words, at, logits in _tiles(hidden, weight, bias, transform, fast):
            place, is_here = _place(targets[at], words)
            chosen[at] += logits.gather(-1, place).squeeze(-1) * is_here
            peak = torch.maximum(largest[at], logits.amax(-1))
            shrink = (largest[at] - peak).exp_()
            share = torch.exp(logits - peak[:, None])
            total[at] = total[at] * shrink + share.sum(-1)
            if early:
                share = transform.times_slope(share, logits)
                products.add_product(pull[at].mul_(shrink[:, None]), share, weight[words], fast)
            largest[at] = peak
        normalizer = largest + total.log()
        if early:
            own = transform.times_slope(torch.ones_like(chosen), chosen)[:, None] * weight[targets].float()
            ctx.save_for_backward(own - pull / total[:, None])
        elif trains:
            ctx.save_for_backward(hidden, weight, bias, targets, normalizer)
            ctx.transform, ctx.fast = transform, fast
        ctx.early, ctx.dtype = early, hidden.dtype
        return chosen - normalizer

    @staticmethod
    def backward(ctx, grad):  # (M,)
        if ctx.early:
            (pull,) = ctx.saved_tensors
            return (grad[:, None] * pull).to(ctx.dtype), *[None] * 6
        hidden, weight, bias, targets, normalizer = ctx.saved_tensors
        wants = ctx.needs_input_grad
        of_hidden = torch.zeros(hidden.shape, device=hidden.device) if wants[0] else None
        of_weight = torch.zeros(weight.shape, device=hidden.device) if wants[1] else None
        of_bias = torch.zeros(weight.shape[0], device=hidden.device) if wants[2] else None
        for words, at, logits in _tiles(hidden, weight, bias, ctx.transform, ctx.fast):
            place, is_here = _place(targets[at], words)
            share = torch.exp(logits - normalizer[at, None]).mul_(-grad[at, None])
            share.scatter_add_(-1, place, (grad[at] * is_here)[:, None])
            share = ctx.transform.times_slope(share, logits)
            if wants[0]:
                products.add_product(of_hidden[at], share, weight[words], ctx.fast)
            if wants[1]:
                products.add_product(of_weight[words], share.T, hidden[at], ctx.fast)
            if wants[2]:
                of_bias[words] += share.sum(0)
        given = [(of_hidden, hidden), (of_weight, weight), (of_bias, bias)]
        return *(None if found is None else found.to(like.dtype) for found, like in given), *[None] * 4


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: Transform, fast: bool
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(words, positions, their float32 logits (C, B)), word block by word block."""
    width = min(products.WORDS_AT_ONCE, len(weight))
    at_once = max(1, LOGITS_AT_ONCE.get(hidden.device.type, LOGITS_AT_ONCE["cuda"]) // width)
    for first in range(0, len(weight), width):
        words = slice(first, min(first + width, len(weight)))
        for start in range(0, len(hidden), at_once):
            at = slice(start, min(start + at_once, len(hidden)))
            own_bias = None if bias is None else bias[words]
            yield words, at, transform(products.raw_logits(hidden[at], weight[words], own_bias, fast))


def _place(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """(C, 1) each target's place in a block of words, 0 where it is not there; (C,) whether it is."""
    place = targets - words.start
    is_here = (place >= 0) & (place < words.stop - words.start)
    return (place * is_here)[:, None], is_here
