"""The LM head: read in chunks that are recomputed in the backward pass, so that no (tokens x vocabulary) matrix exists.

Shapes: M positions, C positions of a chunk, H hidden size, V words, E values read at each position.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

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
    if type(head) is nn.Linear:
        return _inside(
            head, lambda states: _Chunked.apply(states, head.weight, head.bias, read, transform, size), hidden
        )

    def chunk(states: Tensor, at: slice) -> Tensor:
        return read(transform(head(states).float()), at)

    pieces = [(hidden[at], at) for at in _pieces(hidden, size)]
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(chunk, *piece, use_reentrant=False) for piece in pieces])
    return torch.cat([chunk(*piece) for piece in pieces])


def target_logps(inner: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """(M,) log-prob of `targets` (M,) after `hidden` (M, H), through the model's head in chunks."""
    return read_logits(inner, hidden, lambda logits, at: log_probs_of(logits, targets[at])[:, None])[:, 0]


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
    def forward(ctx, hidden, weight, bias, read, transform, size):  # (M, H), (V, H), (V,) | None
        ctx.save_for_backward(hidden, weight, bias)
        ctx.read, ctx.transform, ctx.size = read, transform, size
        return torch.cat([read(transform(_linear(hidden[at], weight, bias)), at) for at in _pieces(hidden, size)])

    @staticmethod
    def backward(ctx, grad):  # (M, E)
        hidden, weight, bias = ctx.saved_tensors
        leaves = [None, weight, bias]
        for index in (1, 2):
            leaves[index] = leaves[index] if leaves[index] is None else leaves[index].detach()
            if ctx.needs_input_grad[index]:
                leaves[index].requires_grad_()
        grads = [torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None, None, None]
        for at in _pieces(hidden, ctx.size):
            leaves[0] = hidden[at].detach().requires_grad_(ctx.needs_input_grad[0])
            wanted = [index for index in range(3) if ctx.needs_input_grad[index]]
            with torch.enable_grad():
                found = ctx.read(ctx.transform(_linear(*leaves)), at)
            found = torch.autograd.grad(found, [leaves[index] for index in wanted], grad[at])
            for index, value in zip(wanted, found, strict=True):
                if index == 0:
                    grads[0][at] = value
                else:
                    grads[index] = value if grads[index] is None else grads[index].add_(value)
        return *grads, None, None, None


def _pieces(hidden: Tensor, size: int) -> list[slice]:
    return [slice(start, min(start + size, len(hidden))) for start in range(0, max(len(hidden), 1), size)]


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(hidden, weight.to(hidden.dtype), bias).float()


def log_probs_of(logits: Tensor, ids: Tensor) -> Tensor:
    """(C,) log-prob of one token each, `ids` (C,), after logits (C, V)."""
    return logits.gather(-1, ids[:, None]).squeeze(-1) - logits.logsumexp(-1)


def logit_transform(inner: nn.Module) -> Callable[[Tensor], Tensor]:
    """What the model does to its head's output: logit scale (Cohere, Granite) and soft-capping (Gemma)."""
    config = inner.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    cap = getattr(config, "final_logit_softcapping", None)

    def transform(logits: Tensor) -> Tensor:
        logits = logits if scale == 1.0 else logits * scale
        return torch.tanh(logits / cap) * cap if cap else logits

    return transform


def chunk_size(inner: nn.Module) -> int:
    """How many positions may pass the head at once."""
    return max(1, LOGITS_AT_ONCE // inner.config.get_text_config().vocab_size)


def _logits_of(inner: nn.Module, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """From hidden states (C, H) to float32 logits (C, V). A linear head is not called: see `_inside`."""
    transform = logit_transform(inner)
    if type(head) is nn.Linear:
        return lambda states: transform(_linear(states, head.weight, head.bias))
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
    logits, ref_logits, size = _logits_of(inner, head), _logits_of(ref_inner, ref_head), chunk_size(inner)

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
