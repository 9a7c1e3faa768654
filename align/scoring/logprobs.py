"""Log-probs of response tokens: one forward of the backbone, and the LM head on response positions only.

The head runs in chunks that are recomputed in the backward pass, so no (tokens x vocabulary) matrix of the
whole batch exists.

Shapes: N responses, S tokens, T response tokens of the longest response, M response tokens in all, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from align.data.collate import MicroBatch, collate
from align.data.tokenize import TokenizedResponse, TokenizedRow

LOGITS_AT_ONCE = 2**24  # values of a chunk of logits: 64 MiB in fp32


def causal_lm(model: nn.Module) -> nn.Module:
    """The transformers model inside DDP, DeepSpeed and PEFT wrappers."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hidden_states(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(M, H) last hidden state at the positions that predict response tokens.

    `model` is called as it is wrapped (DDP and DeepSpeed need their own forward); the backbone's output is
    read by a hook, and the model's own head is kept to a single position.
    """
    inner = causal_lm(model)
    captured: list[Tensor] = []
    handle = inner.base_model.register_forward_hook(lambda module, args, output: captured.append(output[0]))
    extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
    try:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra)
    finally:
        handle.remove()
    return captured[0].flatten(0, 1)[batch.positions]


def response_logps(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(N, T) float32 log-prob of each response token in nats; 0 where `batch.mask` is 0."""
    hidden = hidden_states(model, batch)  # (M, H)
    flat = target_logps(causal_lm(model), hidden, batch.targets)  # (M,)
    logps = torch.zeros(batch.mask.shape, dtype=torch.float32, device=hidden.device)
    return logps.masked_scatter(batch.mask, flat)


def target_logps(inner: nn.Module, hidden: Tensor, targets: Tensor) -> Tensor:
    """(M,) log-prob of `targets` (M,) after `hidden` (M, H), through the model's head in chunks."""
    head, transform = inner.get_output_embeddings(), logit_transform(inner)
    size = chunk_size(inner)
    if type(head) is nn.Linear:
        return _inside(
            head, lambda states: _ChunkedLogps.apply(states, head.weight, head.bias, targets, transform, size), hidden
        )

    def chunk_logps(states: Tensor, wanted: Tensor) -> Tensor:
        return _gather_logps(transform(head(states).float()), wanted)

    pieces = zip(hidden.split(size), targets.split(size), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([checkpoint(chunk_logps, *piece, use_reentrant=False) for piece in pieces])
    return torch.cat([chunk_logps(*piece) for piece in pieces])


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


class _ChunkedLogps(torch.autograd.Function):
    """Log-probs of targets after a linear head. One node for all chunks: DDP and ZeRO see one gradient a weight."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, transform, size):  # (M, H), (V, H), (V,) | None, (M,)
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.transform, ctx.size = transform, size
        pieces = zip(hidden.split(size), targets.split(size), strict=True)
        return torch.cat([_gather_logps(transform(_linear(part, weight, bias)), wanted) for part, wanted in pieces])

    @staticmethod
    def backward(ctx, grad):  # (M,)
        hidden, weight, bias, targets = ctx.saved_tensors
        leaves = [None, weight, bias]
        for index in (1, 2):
            leaves[index] = leaves[index] if leaves[index] is None else leaves[index].detach()
            if ctx.needs_input_grad[index]:
                leaves[index].requires_grad_()
        grads = [torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None, None, None]
        for start in range(0, len(hidden), ctx.size):
            piece = slice(start, start + ctx.size)
            leaves[0] = hidden[piece].detach().requires_grad_(ctx.needs_input_grad[0])
            wanted = [index for index in range(3) if ctx.needs_input_grad[index]]
            with torch.enable_grad():
                logps = _gather_logps(ctx.transform(_linear(*leaves)), targets[piece])
            found = torch.autograd.grad(logps, [leaves[index] for index in wanted], grad[piece])
            for index, value in zip(wanted, found, strict=True):
                if index == 0:
                    grads[0][piece] = value
                else:
                    grads[index] = value if grads[index] is None else grads[index].add_(value)
        return *grads, None, None, None


def _linear(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return nn.functional.linear(hidden, weight.to(hidden.dtype), bias).float()


def _gather_logps(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(-1)


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


def _logits_of(inner: nn.Module, head: nn.Module) -> Callable[[Tensor], Tensor]:
    """From hidden states (C, H) to float32 logits (C, V). A linear head is not called: see `_inside`."""
    transform = logit_transform(inner)
    if type(head) is nn.Linear:
        return lambda states: transform(_linear(states, head.weight, head.bias))
    return lambda states: transform(head(states).float())


@torch.no_grad()
def check_head(model: nn.Module) -> float:
    """Largest difference between our log-probs and those of the model's own logits, on a short probe.

    Models whose head does something unknown to `logit_transform` show up here, before they can train wrongly.
    """
    inner = causal_lm(model)
    device = inner.get_output_embeddings().weight.device
    ids = torch.arange(1, 9, device=device)[None] % inner.config.get_text_config().vocab_size
    row = TokenizedRow((ids[0, 0].item(),), (TokenizedResponse(tuple(ids[0, 1:].tolist()), 1),), None)
    batch = collate([row], pad_id=0).to(device)
    was_training = model.training
    model.eval()
    own = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    own = own.gather(-1, ids[0, 1:, None]).squeeze(-1)
    difference = (response_logps(model, batch)[0] - own).abs().max().item()
    model.train(was_training)
    return difference
