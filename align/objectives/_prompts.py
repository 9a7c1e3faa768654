"""What objectives on all responses to a prompt share: means over them. U prompts of a batch, N responses."""

import torch
from torch import Tensor

from align.objectives import SAMPLE, Batch


def prompt_index(batch: Batch) -> tuple[Tensor, int]:
    """(N,) prompts renumbered 0..U-1 in ascending order of `batch.prompt`, and U."""
    names, index = batch.prompt.unique(return_inverse=True)
    return index, len(names)


def role_means(batch: Batch, values: Tensor, role: int, *, may_lack: bool = False) -> Tensor:
    """(U,) for each prompt, the mean of `values` (N,) over its responses of one role, by their weights.

    Samples carry no weight of their own. 0 where all weights are 0.
    Raises ValueError if a prompt has none (the trainer leaves such prompts out and counts them), unless it `may_lack`
    them: then its mean is 0.
    """
    index, num_prompts = prompt_index(batch)
    weights = (batch.role == role).to(values.dtype)
    zeros = torch.zeros(num_prompts, dtype=values.dtype, device=values.device)
    if not may_lack and (zeros.index_add(0, index, weights) == 0).any():
        raise ValueError(f"a prompt of the batch has no response of role {role}")
    if batch.weight is not None and role != SAMPLE:
        weights = weights * batch.weight.to(values.dtype)
    totals = zeros.index_add(0, index, weights)
    return zeros.index_add(0, index, values * weights) / torch.where(totals == 0, 1.0, totals)


def group_means(batch: Batch, values: Tensor) -> Tensor:
    """(N,) for each response, the mean of `values` (N,) over all responses to its prompt."""
    index, num_prompts = prompt_index(batch)
    zeros = torch.zeros(num_prompts, dtype=values.dtype, device=values.device)
    means = zeros.index_add(0, index, values) / zeros.index_add(0, index, torch.ones_like(values))
    return means[index]
