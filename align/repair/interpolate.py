"""The weights between a base and the policy that was trained from it: a = 0 is the base, 1 the policy.

Plain, for each weight w,

    w(a) = base + a (policy - base)

and weighted by the base's diagonal Fisher information F (`align.repair.fisher`), which holds most to the base what it
relies on most:

    w(a) = ((1 - a) F base + a policy) / ((1 - a) F + a)

https://arxiv.org/abs/2301.10546 (BCWI; there a is the weight of the old model, here 1 - a). At a = 0, where the second
is 0 / 0 for F = 0, it is the base. All weights that training has moved are interpolated, those of norms too.

Of a LoRA policy base + a B A is the adapter with a B in place of B: exact, so a plain merge writes an adapter. Fisher's
weights differ within a matrix, so theirs is not of low rank and is written as full weights.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from align.errors import UserError
from align.evaluation.subject import BASE, POLICY, PREFIX_FILE, Subject
from align.run import RunFolder, whole_folder, write_json

ADAPTER, FULL = "adapter", "full"  # what a merge writes
MADE = "merge.json"


@dataclass(frozen=True)
class Line:
    """The weights that differ between base and policy, inside the model that computes the policy."""

    parameters: dict[str, nn.Parameter]
    base: dict[str, Tensor]  # of the same shapes, or ()
    policy: dict[str, Tensor]
    fisher: dict[str, Tensor] | None = None  # of the same shapes, mean 1; None: plain

    @torch.no_grad()
    def go_to(self, a: float) -> None:
        """Puts the weights at `a` into the model."""
        for name, parameter in self.parameters.items():
            share = share_of_policy(a, None if self.fisher is None else self.fisher[name])
            parameter.copy_(torch.lerp(self.base[name], self.policy[name], share))


def share_of_policy(a: float, fisher: Tensor | None) -> Tensor:
    """The share s, 0 to 1, of the policy in base + s (policy - base): of each weight, or () of all."""
    if fisher is None or a == 0:
        return torch.tensor(a)
    return a / ((1 - a) * fisher + a)


def line(models: Subject) -> Line:
    """The line of a run's models. Raises UserError if the run has no policy, or has moved nothing."""
    if POLICY not in models.heads:
        what = "has heads and a ratio, no policy that could be interpolated"
        raise UserError(models.name, what, "name a run of another objective")
    base, policy = models.heads[BASE].model, models.heads[POLICY].model
    own = dict(policy.named_parameters())
    if moves_adapter(models):  # a B of zeros is the base
        moved = {name: one for name, one in own.items() if is_second_matrix(name)}
        start = {name: torch.zeros((), device=one.device) for name, one in moved.items()}
    else:
        others = dict(base.named_parameters())
        moved = {name: one for name, one in own.items() if not torch.equal(one, others[name])}
        start = {name: others[name].detach() for name in moved}
    if not moved:
        raise UserError(models.name, "is its base, weight for weight", "name a run that has learned something")
    return Line(moved, start, {name: one.detach().clone() for name, one in moved.items()})


def moves_adapter(models: Subject) -> bool:
    """Whether the policy is an adapter on the base, in one model."""
    return models.heads[BASE].model is models.heads[POLICY].model


def is_second_matrix(name: str) -> bool:
    """Whether a parameter is the B of LoRA's B A."""
    return ".lora_B." in name or ".lora_embedding_B." in name


def write(models: Subject, run: str, target: Path, made: dict) -> None:
    """Writes the weights that the policy's model holds now into the folder `target`, complete or not at all.

    It loads with transformers (full weights) or peft (an adapter), and with `align evaluate`: the run's recipe.yaml
    lies beside them. `made` says how it came about.
    """
    policy, source = models.heads[POLICY].model, RunFolder(run)
    with whole_folder(target) as folder:
        if moves_adapter(models):
            _write_adapter(policy, folder)
        else:
            policy.save_pretrained(folder)
        models.tokenizer.save_pretrained(folder)
        for file in (source.recipe, source.weights / PREFIX_FILE):
            if file.is_file():
                shutil.copyfile(file, folder / file.name)
        write_json(folder / MADE, made)


def _write_adapter(policy: nn.Module, folder: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    state = get_peft_model_state_dict(policy, adapter_name=POLICY, save_embedding_layers=False)
    state = {name: values.cpu().contiguous() for name, values in state.items()}
    save_file(state, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    policy.peft_config[POLICY].save_pretrained(folder)
