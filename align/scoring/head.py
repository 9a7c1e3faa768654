"""The LM head, read piece by piece, so that no (tokens x vocabulary) matrix exists, forward or backward.

Log-probs go through a linear head in tiles (`align.scoring.tiles`). Whatever else is read off the logits, and heads
that are not plain linear layers (LoRA), go in chunks of whole rows that are recomputed in the backward pass.

Shapes: M positions, C positions of a chunk, H hidden size, V words, E values read at each position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.scoring.products import in_bf16, product, raw_logits
from align.scoring.tiles import TargetLogps, Transform

LOGITS_AT_ONCE = 2**24  # values of a chunk of logits: 64 MiB in fp32

Read = Callable[[Tensor, slice], Tensor]  # (logits (C, V), which of the M positions they are of) -> (C, E)


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside DDP, DeepSpeed and PEFT wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def read_logits(inner: nn.Module, hidden: Tensor, read: Read) -> Tensor:
    """(M, E) what `read` tells of the float32 logits after `hidden` (M, H), with gradient, in chunks.

    `read` is called again in the backward pass and must then tell the same.
    """
    head, transform, size = inner.get_output_embeddings(), logit_transform(inner), chunk_size(inner)
    bf16 = in_bf16(hidden)
    if type(head) is nn.Linear:
        return _inside(
            head, lambda states: _Chunked.apply(states, head.weight, head.bias, read, transform, size, bf16), hidden
        )

    def chunk(states: Tensor, at: slice) -> Tensor:
        return read(transform(head(states).float()), at)

    pieces = [(hidden[at], at) for at in _pieces(hidden, size)]
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces])
    return torch.cat([chunk(*piece) for piece in pieces])


def target_logps(inner: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """(M,) float32 log-prob of `targets` (M,) after `hidden` (M, H), through the model's head, tile by tile."""
    head, transform = inner.get_output_embeddings(), logit_transform(inner)
    wants_grad, bf16 = torch.is_grad_enabled(), in_bf16(hidden)
    if type(head) is not nn.Linear:
        return read_logits(inner, hidden, lambda logits, at: log_probs_of(logits, targets[at])[:, None])[:, 0]

    def logps(states: Tensor) -> Tensor:
        return TargetLogps.apply(states, head.weight, head.bias, targets, transform, wants_grad, bf16)

    return _inside(head, logps, hidden)


def _inside(head: nn.Module, function: Callable[[Tensor], Tensor], states: Tensor) -> Tensor:
    """`function(states)` as the module's own call: there, and in its backward pass, ZeRO-3 has gathered the weight.

    One call however many chunks: under ZeRO-3 every rank must call a module equally often.
    """
    own_forward = vars(head).get("forward")
    head.forward = function
    try:
        return head(states)
    finally:
        if own_forward is None:
            del head.forward
        else:
            head.forward = own_forward


class _Chunked(torch.autograd.Function):
    """What `read` tells of a linear head's logits. One node for all chunks: DDP and ZeRO see one gradient a weight."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, read, transform, size, bf16):  # (M, H), (V, H), (V,) | None
        ctx.save_for_backward(hidden, weight, bias)
        ctx.read, ctx.transform, ctx.size, ctx.bf16 = read, transform, size, bf16
        pieces = _pieces(hidden, size)
        return torch.cat([read(transform(raw_logits(hidden[at], weight, bias, bf16)), at) for at in pieces])

    @staticmethod
    def backward(ctx, grad):  # (M, E)
        (hidden, weight, bias), wants = ctx.saved_tensors, ctx.needs_input_grad
        grads = [torch.zeros_like(one) if one is not None and wanted else None for one, wanted in
                 zip((hidden, weight, bias), wants[:3], strict=True)]  # fmt: skip
        for at in _pieces(hidden, ctx.size):
            raw = raw_logits(hidden[at], weight, bias, ctx.bf16).requires_grad_()
            with torch.enable_grad():
                found = ctx.read(ctx.transform(raw), at)
            (of_raw,) = torch.autograd.grad(found, raw, grad[at])
            if wants[0]:
                grads[0][at] = product(of_raw, weight, ctx.bf16).to(hidden.dtype)
            if wants[1]:
                grads[1] += product(of_raw.T, hidden[at], ctx.bf16).to(weight.dtype)
            if wants[2]:
                grads[2] += of_raw.sum(0).to(bias.dtype)
        return *grads, *[None] * 4


def _pieces(hidden: Tensor, size: int) -> list[slice]:
    return [slice(start, min(start + size, len(hidden))) for start in range(0, max(len(hidden), 1), size)]


def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """(C,) log-prob of one token each, `ids` (C,), after logits (C, V)."""
    return logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(-1)


def logit_transform(inner: nn.Module) -> Transform:
    """What the model does to its head's output: logit scale (Cohere, Granite) and soft-capping (Gemma)."""
    config = inner.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    return Transform(scale, getattr(config, "final_logit_softcapping", None) or None)


def chunk_size(inner: nn.Module) -> int:
    """How many positions may pass the head at once."""
    return max(1, LOGITS_AT_ONCE // inner.config.get_text_config().vocab_size)


def logits_of(inner: nn.Module, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """From hidden states (C, H) to float32 logits (C, V). A linear head is not called: see `_inside`."""
    transform = logit_transform(inner)
    if type(head) is nn.Linear:
        return lambda states: transform(raw_logits(states, head.weight, head.bias, in_bf16(states)))
    return lambda states: transform(head(states).float())


@torch.no_grad()
def kl_divergence(model: nn.Module, hidden: Tensor, ref_model: nn.Module, ref_hidden: Tensor) -> Tensor:
    """(M,) exact KL(policy || reference) of the next token at each position, in nats, over the vocabulary.

    `hidden` (M, H) and `ref_hidden` are the last hidden states of the two. The reference's head is taken without
    an adapter.
    """
    inner, ref_inner = causal_lm(model), causal_lm(ref_model)
    head, ref_head = inner.get_output_embeddings(), ref_inner.get_output_embeddings()
    ref_head = ref_head.get_base_layer() if hasattr(ref_head, "get_base_layer") else ref_head
    logits, ref_logits, size = logits_of(inner, head), logits_of(ref_inner, ref_head), chunk_size(inner)

    def divergence(states: Tensor) -> Tensor:
        pieces = []
        for part, ref_part in zip(states.split(size), ref_hidden.split(size), strict=True):
            log_p, log_q = logits(part).log_softmax(-1), ref_logits(ref_part).log_softmax(-1)
            pieces.append((log_p.exp() * (log_p - log_q)).sum(-1))
        return torch.cat(pieces)

    if type(head) is not nn.Linear:
        return divergence(hidden)
    if head is ref_head:
        return _inside(head, divergence, hidden)
    return _inside(ref_head, lambda states: _inside(head, divergence, states), hidden)
