"""Log-probs of given tokens through a linear LM head, tile by tile: tokens by words, never a whole matrix.

Shapes: M positions, C of them in a tile, H hidden size, V words, B of them in a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from align.scoring import products


@dataclass(frozen=True)
class Transform:
    """What a model does to its head's output: logit scale (Cohere, Granite), then soft-capping (Gemma)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        logits = raw if self.scale == 1.0 else raw * self.scale
        return torch.tanh(logits / self.cap) * self.cap if self.cap else logits

    def slope(self, logits: Tensor) -> Tensor | float:
        """The derivative of the logits by the head's output."""
        return self.scale * (1 - (logits / self.cap) ** 2) if self.cap else self.scale


class TargetLogps(torch.autograd.Function):
    """(M,) log-prob of `targets` (M,) after `hidden` (M, H), through the head's weight (V, H) and bias (V,).

    With d the one-hot target minus the probabilities, times the transform's slope, the gradient of a log-prob is
    d W for its hidden state and d (x) hidden for the weight. A frozen head's d W is summed in the forward pass, word
    block by word block as the softmax goes (rescaled whenever a larger logit comes), so that the backward pass needs
    no logits. A head that trains needs them again, since d (x) hidden must be weighed before it is summed.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, transform, wants_grad, bf16):
        if len(targets) and int(targets.max()) >= len(weight):
            raise IndexError(f"token {int(targets.max())} is outside the model's vocabulary of {len(weight)}")
        trains = wants_grad and (weight.requires_grad or (bias is not None and bias.requires_grad))
        early = wants_grad and not trains
        largest = torch.full(targets.shape, -torch.inf, device=hidden.device)
        total, chosen = torch.zeros_like(largest), torch.zeros_like(largest)
        pull = torch.zeros(hidden.shape, device=hidden.device) if early else None  # sum over words of exp(logit) W
        for words, at, logits in _tiles(hidden, weight, bias, transform, bf16):
            place, is_here = _place(targets[at], words)
            chosen[at] += logits.gather(-1, place).squeeze(-1) * is_here
            slope = transform.slope(logits) if early else 1.0
            peak = torch.maximum(largest[at], logits.amax(-1))
            shrink = (largest[at] - peak).exp_()
            share = logits.sub_(peak[:, None]).exp_()
            total[at] = total[at] * shrink + share.sum(-1)
            if early:
                products.add_product(pull[at].mul_(shrink[:, None]), _times(share, slope), weight[words], bf16)
            largest[at] = peak
        normalizer = largest + total.log()
        if early:
            own = transform.slope(chosen[:, None]) * weight[targets].float()
            ctx.save_for_backward(own.sub_(pull.div_(total[:, None])))
        elif trains:
            ctx.save_for_backward(hidden, weight, bias, targets, normalizer)
            ctx.transform, ctx.bf16 = transform, bf16
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
        for words, at, logits in _tiles(hidden, weight, bias, ctx.transform, ctx.bf16):
            place, is_here = _place(targets[at], words)
            slope = ctx.transform.slope(logits)
            share = logits.sub_(normalizer[at, None]).exp_().mul_(-grad[at, None])
            share = _times(share.scatter_add_(-1, place, (grad[at] * is_here)[:, None]), slope)
            if wants[0]:
                products.add_product(of_hidden[at], share, weight[words], ctx.bf16)
            if wants[1]:
                products.add_product(of_weight[words], share.T, hidden[at], ctx.bf16)
            if wants[2]:
                of_bias[words] += share.sum(0)
        given = [(of_hidden, hidden), (of_weight, weight), (of_bias, bias)]
        return *(None if found is None else found.to(like.dtype) for found, like in given), *[None] * 4


def _tiles(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, transform: Transform, bf16: bool
) -> Iterator[tuple[slice, slice, Tensor]]:
    """(words, positions, their float32 logits (C, B)), word block by word block. The next tile overwrites the last."""
    rows, width = products.tile(hidden.device)
    space = torch.empty(min(rows, len(hidden)) * min(width, len(weight)), device=hidden.device)
    for first in range(0, len(weight), width):
        words = slice(first, min(first + width, len(weight)))
        for start in range(0, len(hidden), rows):
            at = slice(start, min(start + rows, len(hidden)))
            shape = (at.stop - at.start, words.stop - words.start)
            out = space[: shape[0] * shape[1]].view(shape)
            logits = products.product(hidden[at], weight[words].T, bf16, out)
            yield words, at, transform(logits if bias is None else logits + bias[words].float())


def _times(values: Tensor, slope: Tensor | float) -> Tensor:
    return values if isinstance(slope, float) and slope == 1.0 else values * slope


def _place(targets: Tensor, words: slice) -> tuple[Tensor, Tensor]:
    """(C, 1) each target's place in a block of words, 0 where it is not there; (C,) whether it is."""
    place = targets - words.start
    is_here = (place >= 0) & (place < words.stop - words.start)
    return (place * is_here)[:, None], is_here
