"""Measures a policy on held-out rows: what was to go down, what was not to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from accelerate.utils import gather_object

from align.data.collate import MicroBatch, collate
from align.data.load import HeldOutSet
from align.data.share import share_out
from align.reference import ADAPTER_OFF, FROZEN, References
from align.scoring.head import causal_lm, kl_divergence, target_logps
from align.scoring.logprobs import hidden_states


class HeldOut:
    """Measures a policy on held-out sets; every rank takes its share."""

    def __init__(
        self, sets: Sequence[HeldOutSet], *, state, device, tokens_per_device: int, pad_id: int, layout: str,
        autocast: Callable[[], AbstractContextManager],
    ):  # fmt: skip
        self.sets, self.state, self.device = sets, state, device
        self.tokens_per_device, self.pad_id, self.layout = tokens_per_device, pad_id, layout
        self.autocast = autocast  # the run's arithmetic
        self.start_hidden: dict[str, list[torch.Tensor]] = {}  # last hidden states at the start, in host memory

    @torch.no_grad()
    def measure(self, model, references: References | None, *, at_start: bool) -> dict[str, dict]:
        """{set name: {logps, kl, tokens, responses}}: mean log-prob and exact KL(policy || reference) in nats a token.

        `at_start`: the policy still is its reference. Its KL is 0 by definition, and its hidden states are kept,
        so that later measurements need no pass of the reference.
        """
        was_training = model.training
        model.eval()
        with self.autocast():
            result = {held_out.name: self._measured(held_out, model, references, at_start) for held_out in self.sets}
        model.train(was_training)
        return result

    def _measured(self, held_out: HeldOutSet, model, references: References | None, at_start: bool) -> dict:
        shares = share_out(
            held_out.rows, world=self.state.num_processes, tokens_per_device=self.tokens_per_device, layout=self.layout
        )
        sums = [0.0, 0.0, 0]
        kept = self.start_hidden.setdefault(held_out.name, [])
        for index, group in enumerate(shares[self.state.process_index]):
            batch = collate(group, self.pad_id, self.layout).to(self.device)
            hidden = hidden_states(model, batch)
            logps, kl = target_logps(causal_lm(model), hidden, batch.targets).sum().item(), 0.0
            if at_start:
                kept.append(hidden.cpu())
            elif references is not None:
                kl = self._kl(model, references, batch, hidden, kept[index] if kept else None)
            if batch.rows:
                sums = [sums[0] + logps, sums[1] + kl, sums[2] + len(batch.targets)]
        total, kl, tokens = (sum(values) for values in zip(*gather_object([sums]), strict=True))
        return {
            "role": held_out.role,
            "logps": total / max(tokens, 1),
            "kl": None if references is None else kl / max(tokens, 1),
            "tokens": tokens,
            "responses": sum(len(row.responses) for row in held_out.rows),
        }

    def _kl(self, model, references: References, batch: MicroBatch, hidden, start_hidden) -> float:
        """Sum over the response tokens of KL(policy || reference)."""
        with references.model(references.policy, model) as reference:
            if start_hidden is None or references.policy not in (ADAPTER_OFF, FROZEN):
                ref_hidden = hidden_states(reference, batch)
            else:
                ref_hidden = start_hidden.to(self.device)
        return kl_divergence(model, hidden, reference, ref_hidden).sum().item()
