"""Log-probs of response tokens: one forward of the backbone, and the LM head on response positions only.

Shapes: N responses, S tokens, T response tokens of the longest response, M response tokens in all, H hidden size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.errors import UserError
from align.scoring.attention import inputs
from align.scoring.extras import Extra
from align.scoring.head import causal_lm, log_probs_of, read_logits, target_logps
from align.scoring.recompute import set_recompute
from align.scoring.routing import routed

Follow = Callable[[MicroBatch, Tensor, Tensor], None]


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
        set_recompute(inner, batch.recompute)
        with routed(inner, batch):
            model(**inputs(batch.tokens), use_cache=False, **extra)
    finally:
        handle.remove()
    if not captured:
        what = f"{type(inner).__name__} does not call its backbone as others do: no hidden states can be read"
        raise UserError("model.path", what, "this architecture is not supported yet")
    return captured[0].flatten(0, 1)[batch.tokens.positions]


def response_logps(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(N, T) float32 log-prob of each response token in nats; 0 where `batch.mask` is 0."""
    return _spread(target_logps(causal_lm(model), hidden_states(model, batch), batch.targets), batch)


def response_scores(
    model: nn.Module, batch: MicroBatch, extras: dict[str, Extra], follow: Follow | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """(N, T) log-probs as `response_logps`, and (N, T) of each of `extras`, from one pass through the head.

    `follow` is told of the hidden states (M, H) and the log-probs, whose gradients it may look at.
    """
    hidden, found = hidden_states(model, batch), {}
    if extras:

        def read(logits: Tensor, at: slice) -> Tensor:
            values = [log_probs_of(logits, batch.targets[at]), *(extra(logits, at) for extra in extras.values())]
            return torch.stack(values, dim=-1)

        flat = read_logits(causal_lm(model), hidden, read)  # (M, 1 + extras)
        logps, *others = (_spread(column, batch) for column in flat.unbind(-1))
        found = dict(zip(extras, others, strict=True))
    else:
        logps = _spread(target_logps(causal_lm(model), hidden, batch.targets), batch)
    if follow is not None:
        follow(batch, hidden, logps)
    return logps, found


def _spread(flat: Tensor, batch: MicroBatch) -> Tensor:
    """(N, T) of values (M,) of the response tokens, 0 elsewhere."""
    return flat.new_zeros(batch.mask.shape).masked_scatter(batch.mask, flat)
