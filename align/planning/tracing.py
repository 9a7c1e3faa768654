"""How many bytes are alive while the real code runs on tensors without values: a model on the `meta` device.

torch's FakeTensorMode carries every operation out on shapes alone, and `LiveBytes` sees each tensor come and go. What
kernels use inside is not seen: their blocks are small (`align.scoring.segments`, torch's fused attention).
"""

from __future__ import annotations

import contextlib
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from align.data.collate import MicroBatch
from align.evaluation.heldout import tell
from align.objectives import Objective
from align.reference.teacher import Teacher
from align.scoring.head import causal_lm, kl_divergence, read_logits
from align.scoring.logprobs import hidden_states
from align.view import Scorer

WEIGHTS, GRADIENTS, ACTIVATIONS, HEAD = "weights", "gradients", "activations", "head"


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of fake tensors that are alive, by what they are for, and what there was at the fullest moment.

    Tensors with values (token ids, masks, positions) are computed with as they are, as long as no other meets them, so
    that code may ask for their values; they are small, and not counted.
    """

    def __init__(self, fake: FakeTensorMode):
        super().__init__()
        self.fake, self.part = fake, ACTIVATIONS  # what a tensor that comes now is for
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()  # by part, when most was alive in all
        self.most_passing = 0  # most bytes at a time that were neither weights nor gradients
        self._known: dict[weakref.ref, tuple[str, int]] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        with_values = [one for one in given if not isinstance(one, FakeTensor)]
        if with_values and len(with_values) == len(given):
            with unset_fake_temporarily():
                return function(*args, **kwargs)
        if with_values:
            args, kwargs = tree_map_only(Tensor, self._as_fake, (args, kwargs))
        result = function(*args, **kwargs)
        for leaf in _tensors(result if isinstance(result, tuple | list) else (result,)):
            self.see(leaf)
        return result

    def _as_fake(self, tensor: Tensor) -> FakeTensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake.from_tensor(tensor)

    def see(self, tensor: Tensor, part: str | None = None) -> None:
        """Counts a tensor's storage, once; `part` says what it is for from now on, if not what it was thought to be."""
        storage = tensor.untyped_storage()
        key = weakref.ref(storage, self._gone)
        before = self._known.get(key)
        if before is not None:
            if part is not None and part != before[0]:
                self._known[key] = part, before[1]
                self.now[before[0]] -= before[1]
                self.now[part] += before[1]
            return
        part, size = part or self.part, storage.nbytes()
        self._known[key] = part, size
        self.now[part] += size
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()
        self.most_passing = max(self.most_passing, self.now.total() - self.now[WEIGHTS] - self.now[GRADIENTS])

    def _gone(self, key: weakref.ref) -> None:
        part, size = self._known.pop(key)
        self.now[part] -= size


def _tensors(values: Iterable) -> Iterator[Tensor]:
    """Those among an operation's arguments or results, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def as_fake(model: nn.Module, fake: FakeTensorMode) -> None:
    """Turns a model on the `meta` device, in place, into one of fake tensors that take themselves for a CPU's."""
    made: dict[int, Tensor] = {}  # tied weights stay one
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is None:
                    continue
                if id(tensor) not in made:
                    new = fake.fake_tensor_converter.from_meta_and_device(fake, tensor.detach(), torch.device("cpu"))
                    is_weight = isinstance(tensor, nn.Parameter)
                    made[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if is_weight else new
                held[name] = made[id(tensor)]


def stand_in(objective: Objective, policy: nn.Module) -> Teacher | None:
    """Where the objective reads a negative teacher, one of the policy's size: the policy itself."""
    return Teacher(policy) if "teacher" in objective.needs else None


class EmptyModel:
    """A policy without values, on which the real scoring code runs to tell how much memory it takes."""

    def __init__(self, policy: nn.Module, *, bf16: bool):
        """`policy` on the `meta` device, which it leaves; `bf16`: whether products are taken in it by autocast."""
        self.policy, self.bf16 = policy, bf16
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        as_fake(policy, self.fake)

    def train(self, batch: MicroBatch, scorer: Scorer, *, accumulates: bool) -> LiveBytes:
        """Forward and backward pass of a micro-batch; `accumulates`: there are gradients of another one before it.

        The objective itself is left out: it holds no more than some numbers a response token.
        """
        live = LiveBytes(self.fake)
        self.policy.train()
        with self._counted(live), _parts_of_a_pass(self.policy, live):
            if accumulates:
                live.part = GRADIENTS
                for weight in self.policy.parameters():
                    weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
                live.part = ACTIVATIONS
            logps, extras = scorer.policy(self.policy, batch, 0)
            sum((one * batch.mask).sum() for one in (logps, *extras.values())).backward()
        self.policy.zero_grad()
        return live

    @torch.no_grad()
    def measure(self, batch: MicroBatch, *, has_kl: bool) -> LiveBytes:
        """What `align.evaluation.heldout` does with a micro-batch of held-out rows."""
        live, inner = LiveBytes(self.fake), causal_lm(self.policy)
        self.policy.eval()
        with self._counted(live):
            hidden = hidden_states(self.policy, batch)
            read_logits(inner, hidden, partial(tell, batch.targets))
            if has_kl:
                kl_divergence(self.policy, hidden, self.policy, torch.empty_like(hidden))
        return live

    @contextlib.contextmanager
    def _counted(self, live: LiveBytes) -> Iterator[None]:
        for tensor in (*self.policy.parameters(), *self.policy.buffers()):
            live.see(tensor, WEIGHTS)
        with self.fake, live, torch.autocast("cpu", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            yield


@contextlib.contextmanager
def _parts_of_a_pass(policy: nn.Module, live: LiveBytes) -> Iterator[None]:
    """Tells the head's tensors from the backbone's, and gradients from both, while passes are made."""

    def enter_head(module: nn.Module, args: tuple, output: tuple) -> None:
        if output[0].requires_grad:  # not a teacher's
            live.part = HEAD
            output[0].register_hook(leave_head)

    def leave_head(grad: Tensor) -> None:
        live.part = ACTIVATIONS

    handles = [causal_lm(policy).base_model.register_forward_hook(enter_head)]
    for weight in policy.parameters():
        if weight.requires_grad:
            handles.append(weight.register_post_accumulate_grad_hook(lambda held: live.see(held.grad, GRADIENTS)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
