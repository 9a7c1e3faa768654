"""Which adapter computes which token, of a model that has a LoRA adapter for each role.

All adapters are active at once, and what one of them adds is masked behind its first matrix: a token is computed by
the adapter of its response's role, or by none, that is, by the base. So one forward and one backward pass serve all
roles: the base's matrices meet the tokens of all heads in one product, and DDP and ZeRO see an ordinary model. What is
not shared: behind an adapter the hidden states of a prompt are others than the base's from the first layer on, so a
prompt is forwarded once for each head that answers it (`align.data.steps.by_role`).

Shapes: B rows, S tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from align.data.layout import PADDED
from align.errors import UserError

if TYPE_CHECKING:
    from align.data.collate import MicroBatch

_NAME = "adapter_routing"  # the attribute of a transformers model that holds its Routing


class Routing:
    """The roles of the tokens of the next forward pass of one model; `adapters` maps a role to its adapter's name.

    Where nobody says otherwise (generation, say), all tokens belong to `default`.
    """

    def __init__(self, adapters: dict[int, str], default: int):
        self.adapters, self.default = adapters, default
        self.roles: Tensor | int = default  # of each token (B, S), or of all

    def attach(self, model: nn.Module) -> None:
        """Puts the masks behind the adapters of a PEFT model. Raises UserError for adapters that cannot be masked."""
        inner, count = model.get_base_model(), 0
        for role, name in self.adapters.items():
            for layer in inner.modules():
                if name in getattr(layer, "lora_A", ()):
                    layer.lora_A[name].register_forward_hook(_Mask(self, role))
                    count += 1
                elif name in getattr(layer, "lora_embedding_A", ()):
                    count = -len(list(inner.modules()))
        if count < 1 or type(inner.get_output_embeddings()) is not nn.Linear:
            what = "an adapter for each role works on linear layers other than the LM head"
            raise UserError("model.adapter.targets", what, "name such layers, or all-linear")
        setattr(inner, _NAME, self)

    @contextlib.contextmanager
    def set(self, roles: Tensor | int) -> Iterator[None]:
        """`roles` are those of the tokens in the block."""
        before, self.roles = self.roles, roles
        try:
            yield
        finally:
            self.roles = before


class _Mask:
    """The forward hook of the first matrix of an adapter: keeps what it says of the tokens of its role."""

    def __init__(self, routing: Routing, role: int):
        self.routing, self.role = routing, role

    def __call__(self, module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        roles = self.routing.roles
        if isinstance(roles, int):
            return output if roles == self.role else output * 0
        if roles.shape != output.shape[:-1]:  # experts see tokens in an order of their own
            what = "its layers do not see tokens in rows, so they cannot be told whose they are"
            raise UserError("model.path", what, "use another model, or model.adapter.targets outside of experts")
        return output * (roles == self.role)[..., None].to(output.dtype)


def routing_of(inner: nn.Module) -> Routing | None:
    """The Routing of a transformers model; None if it has no adapters by role."""
    return getattr(inner, _NAME, None)


def routed(inner: nn.Module, batch: MicroBatch) -> contextlib.AbstractContextManager:
    """Each response of the micro-batch, and the prompt in front of it, is computed by the adapter of its role."""
    routing = routing_of(inner)
    return contextlib.nullcontext() if routing is None else routing.set(token_roles(batch))


def token_roles(batch: MicroBatch) -> Tensor:
    """(B, S) the role of the response that each token belongs to or stands in front of; 0 in a stand-in."""
    ids = batch.tokens.input_ids
    if not batch.rows:
        return torch.zeros_like(ids)
    if batch.layout == PADDED:
        return batch.role[:, None].expand(ids.shape)
    roles, sizes = [], []
    for row in batch.rows:
        found = {response.role for response in row.responses}
        assert len(found) == 1, "a packed prompt has responses of one role: see align.data.steps.by_role"
        roles.append(found.pop())
        sizes.append(len(row.prompt_ids) + sum(len(response.ids) - 1 for response in row.responses))
    return torch.repeat_interleave(torch.tensor(roles), torch.tensor(sizes))[None].to(ids.device)
