"""Distributions over the vocabulary in short: their likeliest tokens, and all others taken together.

So the policy's start can be kept for a few positions in some kilobytes, and compared with wherever its weights
have gone. The KL over these classes is never above the exact one (what is taken together cannot tell more), and
close to it where the classes held nearly all of the probability.

Shapes: C positions of a chunk, V words, K likeliest.
"""

from __future__ import annotations

import torch
from torch import Tensor

K = 64
SMALLEST_REST = 1e-6  # probability of the others together; below it float32 sums are rounding


def likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    """((C, K) the likeliest tokens after logits (C, V), (C, K + 1) log-probs of them and of the others)."""
    ids = logits.topk(min(K, logits.shape[-1] - 1)).indices
    return ids, class_logps(logits, ids)


def class_logps(logits: Tensor, ids: Tensor) -> Tensor:
    """(C, K + 1) log-probs of the tokens `ids` (C, K), and of all others together, after logits (C, V)."""
    logps = logits.gather(-1, ids) - logits.logsumexp(-1, keepdim=True)
    rest = (1 - logps.exp().sum(-1, keepdim=True)).clamp(min=SMALLEST_REST).log()
    return torch.cat([logps, rest], dim=-1)


def divergence(logps: Tensor, other: Tensor) -> Tensor:
    """(C,) KL(one || other) in nats of two distributions over the same classes, (C, K + 1) log-probs each."""
    return (logps.exp() * (logps - other)).sum(-1)
