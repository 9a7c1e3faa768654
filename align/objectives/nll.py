"""NLL: negative log-likelihood, that is supervised fine-tuning (SFT); and NAT through the data.

https://arxiv.org/abs/2402.11651 (NAT, Wang et al., 2024). For each token of a positive

    L = -log p

divided by the number of tokens of the whole optimiser step: long answers count more than short ones, as everywhere in
SFT. Under `data.nat` good and bad answers are both imitated, behind prompts that say which they are, so nothing is
pushed down. Without it this is the positives-only baseline.
"""

from dataclasses import dataclass

import torch

from align.objectives import POSITIVE, Batch, Losses, Objective, lift


@dataclass(frozen=True)
class NLL(Objective):
    """Imitates positives, token by token; with `data.nat` also negatives, behind a prompt that says so."""

    needs = ("positives",)
    normalize_by = "token"

    def __call__(self, batch: Batch) -> Losses:
        is_positive = (batch.role == POSITIVE)[:, None]  # (N, 1); in a run all are, elsewhere the others' loss is 0
        return Losses(torch.where(is_positive, -lift(batch.logps), 0.0)[batch.mask])
