"""Measures a policy on held-out rows: what was to go down, what was not to change."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object

from align.data.collate import MicroBatch, collate, share_out
from align.data.load import HeldOutSet
from align.reference import References
from align.scoring.logprobs import causal_lm, hidden_states, kl_divergence, response_logps, target_logps


class HeldOut:
    """Measures a policy on held-out sets; every rank takes its share."""

    def __init__(self, sets: Sequence[HeldOutSet], *, state, device, tokens_per_device: int, pad_id: int):
        self.sets, self.state, self.device = sets, state, device
        self.tokens_per_device, self.pad_id = tokens_per_device, pad_id

    @torch.no_grad()
    def measure(self, model, references: References | None, *, at_start: bool) -> dict[str, dict]:
        """{set name: {logps, kl, tokens, responses}}: mean log-prob and exact KL(policy || reference) in nats a token.

        `at_start`: the policy still is its reference, so the KL is 0 by definition and its pass is spared.
        """
        was_training = model.training
        model.eval()
        result = {}
        for held_out in self.sets:
            shares = share_out(held_out.rows, world=self.state.num_processes, tokens_per_device=self.tokens_per_device)
            sums = [0.0, 0.0, 0]
            for group in shares[self.state.process_index]:
                batch = collate(group, self.pad_id).to(self.device)
                logps, kl = self._score(model, references, batch, at_start)
                if batch.rows:
                    sums = [sums[0] + logps, sums[1] + kl, sums[2] + len(batch.targets)]
            total, kl, tokens = (sum(values) for values in zip(*gather_object([sums]), strict=True))
            result[held_out.name] = {
                "role": held_out.role,
                "logps": total / max(tokens, 1),
                "kl": None if references is None else kl / max(tokens, 1),
                "tokens": tokens,
                "responses": sum(len(row.responses) for row in held_out.rows),
            }
        model.train(was_training)
        return result

    def _score(self, model, references: References | None, batch: MicroBatch, at_start: bool) -> tuple[float, float]:
        """(sum of log-probs, sum of KLs) over the response tokens of a micro-batch."""
        if references is None or at_start:
            return response_logps(model, batch).sum().item(), 0.0
        hidden = hidden_states(model, batch)
        logps = target_logps(causal_lm(model), hidden, batch.targets).sum().item()
        with references.model(references.policy, model) as reference:
            ref_hidden = hidden_states(reference, batch)
        return logps, kl_divergence(model, hidden, reference, ref_hidden).sum().item()
