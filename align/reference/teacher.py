"""The negative teacher: what a model trained on negatives would say next (negative distillation).

Shapes: M response positions, C of them in a chunk, H hidden size, V words.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.scoring.head import causal_lm, logits_of
from align.scoring.logprobs import hidden_states


class Teacher:
    """A frozen model whose distributions are read position by position; it may have another head than the policy."""

    def __init__(self, model: nn.Module):
        self.model = model

    @torch.no_grad()
    def distributions(self, batch: MicroBatch) -> Callable[[slice], Tensor]:
        """From positions to their (C, V) probabilities. One forward; only its last hidden states (M, H) are kept."""
        inner = causal_lm(self.model)
        hidden, logits = hidden_states(self.model, batch), logits_of(inner, inner.get_output_embeddings())

        @torch.no_grad()
        def read(at: slice) -> Tensor:
            return logits(hidden[at]).softmax(-1)

        return read
