"""What the backward pass computes again, so that a micro-batch need not hold it: `train.recompute`.

Of a layer of SmolLM2-135M 11,100 values a token are held under `none`, 6,300 under `cheap` (its input and the results
of its products and its attention; norms, rotations, gates and their products are computed again, which takes about a
sixteenth of the time of a step) and 576 under `all` (its input alone), where a third more must be multiplied. Which of
them a micro-batch needs is decided where it is made (`align.data.layout.least_recompute`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from align.data.layout import CHEAP, NONE
from align.scoring import segments as segments  # registers align::tree_attention
from align.scoring.head import causal_lm
from align.scoring.routing import routing_of

_NAME = "recomputed_layers"  # the attribute of a transformers model that holds its Recompute

_aten = torch.ops.aten
_DEAR = {
    _aten.mm.default, _aten.addmm.default, _aten.bmm.default, _aten.baddbmm.default,
    torch.ops.align.tree_attention.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default, _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default, _aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.higher_order.flex_attention,
}  # fmt: skip


def _policy(context, operation, *args, **kwargs) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _DEAR else CheckpointPolicy.PREFER_RECOMPUTE


class Recompute:
    """The layers of one model, and what the backward pass of the next forward pass computes again of them."""

    def __init__(self, inner: nn.Module):
        self.layers = [layer for layer in inner.modules() if hasattr(layer, "gradient_checkpointing")]
        self.routing, self.mode = routing_of(inner), NONE

    def set(self, mode: str) -> None:
        self.mode = mode
        for layer in self.layers:
            layer.gradient_checkpointing = mode != NONE

    def contexts(self) -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
        """What surrounds a layer, and what does when it is computed again: by then tokens may be of other roles."""
        null = contextlib.nullcontext
        first, again = create_selective_checkpoint_contexts(_policy) if self.mode == CHEAP else (null(), null())
        if self.routing is not None:
            again = _both(again, self.routing.set(self.routing.roles))
        return first, again


@contextlib.contextmanager
def _both(one: contextlib.AbstractContextManager, other: contextlib.AbstractContextManager) -> Iterator[None]:
    with one, other:
        yield


def prepare(policy: nn.Module) -> bool:
    """Makes a (PEFT) model ready to be told what to compute again, at first nothing. Returns whether it can be."""
    inner = causal_lm(policy)
    if not inner.supports_gradient_checkpointing:
        return False
    recompute = Recompute(inner)
    enable = getattr(inner, "activation_checkpointing_enable", inner.gradient_checkpointing_enable)  # its older name
    enable({"use_reentrant": False, "context_fn": recompute.contexts})
    inner.disable_input_require_grads()  # for reentrant checkpoints only, and not free
    recompute.set(NONE)
    setattr(inner, _NAME, recompute)
    return True


def set_recompute(inner: nn.Module, mode: str) -> None:
    """What is computed again of the next forward pass of a model; of one that is not prepared, nothing."""
    recompute = getattr(inner, _NAME, None)
    if recompute is not None:
        recompute.set(mode)
