"""What of the policy a recipe trains: the types of its weights, and its adapters."""

from __future__ import annotations

import torch
from torch import nn

from align import models
from align.objectives import POSITIVE
from align.recipe import Recipe
from align.scoring.routing import Routing


def weights_type(recipe: Recipe, bf16: bool) -> torch.dtype:
    """The type of the weights of `model.path`: float32 where they train (master copies), else by the precision."""
    return torch.bfloat16 if recipe.model.adapter is not None and bf16 else torch.float32


def with_adapters(recipe: Recipe, policy: nn.Module) -> nn.Module:
    """The policy with its adapter, or with one for each role where the objective asks for them."""
    if recipe.model.adapter is None:
        return policy
    adapters = recipe.build_objective().adapters
    policy = models.add_adapter(policy, recipe.model.adapter, recipe.train.seed, list(adapters.values()) or ["default"])
    if adapters:
        Routing(adapters, POSITIVE).attach(policy)
    return policy
