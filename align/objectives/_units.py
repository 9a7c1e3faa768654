"""The units that losses are counted and weighed in, by `normalize_by`: what the trainer divides a step's losses by."""

import torch
from torch import Tensor

from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch
from align.objectives._prompts import prompt_index


def count_units(batch: Batch, unit: str) -> int:
    """How many units of `normalize_by` a batch holds; equals the number of losses an objective returns."""
    return len(unit_weights(batch, unit))


def unit_weights(batch: Batch, unit: str) -> Tensor:
    """(U,) example weight of each unit, in the order of the losses.

    A pair weighs the product of its two responses' weights; a prompt the mean over its responses that were
    given as data (samples carry no weight of their own).
    """
    weight = torch.ones_like(batch.role, dtype=torch.float32) if batch.weight is None else batch.weight.float()
    if unit in ("token", "role_token"):
        tokens = weight[:, None].expand(batch.mask.shape)
        return (tokens if batch.token_weight is None else tokens * batch.token_weight)[batch.mask]
    if unit == "pair":
        return weight[batch.pairs].prod(-1)
    if unit == "prompt":
        index, num_prompts = prompt_index(batch)
        given = (batch.role != SAMPLE).float()
        zeros = torch.zeros(num_prompts, device=weight.device)
        counts = zeros.index_add(0, index, given)
        return torch.where(counts > 0, zeros.index_add(0, index, weight * given) / counts.clamp(min=1), 1.0)
    return weight[
        {"positive": batch.role == POSITIVE, "negative": batch.role == NEGATIVE}.get(unit, batch.role == batch.role)
    ]


def unit_groups(batch: Batch, unit: str) -> Tensor:
    """(U,) int: which units are counted together. All of a step's, but for "role_token": there those of each role."""
    if unit == "role_token":
        return batch.role[:, None].expand(batch.mask.shape)[batch.mask]
    return torch.zeros(count_units(batch, unit), dtype=torch.long, device=batch.role.device)
