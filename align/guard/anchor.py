"""A KL anchor: holds the policy to its start on a few neutral answers, by KL(start || policy).

Its weight follows the objective's pull: one whose losses are sums over tokens needs a heavier anchor than one of means.

Shapes: M response tokens, K likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.guard.rows import FixedRows
from align.scoring.head import causal_lm, read_logits
from align.scoring.likeliest import class_logps, divergence
from align.scoring.logprobs import hidden_states

STRENGTH = 2.0  # nats by which a negative's mean log-prob would have to fall to be worth a nat of KL


class Anchor:
    """The rows that hold the policy."""

    def __init__(self, rows: FixedRows):
        self.rows = rows

    def weight(self, pull: float) -> float:
        """Of the mean KL in the loss, beside an objective that pulls so hard at the mean log-prob of a role."""
        return STRENGTH * pull

    def losses(self, model: nn.Module) -> Iterator[Callable[[], Tensor]]:
        """For each micro-batch of this rank a call that gives what it adds to the mean KL a token, over all ranks.

        All ranks have equally many.
        """
        for batch in self.rows.batches:
            yield partial(self._loss, model, batch.to(self.rows.device))

    def _loss(self, model: nn.Module, batch: MicroBatch) -> Tensor:
        ids, start = self.rows.start_of(batch)  # (M, K), (M, K + 1)

        def read(logits: Tensor, at: slice) -> Tensor:
            return divergence(start[at], class_logps(logits, ids[at]))[:, None]

        kl = read_logits(causal_lm(model), hidden_states(model, batch), read).sum()
        return kl / self.rows.num_tokens if batch.rows else kl * 0.0
