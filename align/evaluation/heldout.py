"""Measures a policy on held-out rows: what was to go down, what was not to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch
from accelerate.utils import gather_object

from align.data.collate import MicroBatch, collate
from align.data.load import HeldOutSet
from align.data.share import share_out
from align.evaluation.intervals import of_ratio
from align.reference import ADAPTER_OFF, FROZEN, References
from align.scoring.extras import entropy, top_mass
from align.scoring.head import causal_lm, kl_divergence, log_probs_of, read_logits
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
        self.start_rows: dict[str, np.ndarray] = {}  # (R, 2) log-prob and tokens of each row at the start

    @torch.no_grad()
    def measure(self, model, references: References | None, *, at_start: bool) -> dict[str, dict]:
        """{set name: means over response tokens}, and how many tokens and responses there are.

        `logps`: log-prob in nats, and `logps_interval`, 95 % over prompts; `change_interval`: of its change since the
        start, missing in a run that was gone on with; `kl`: exact KL(policy || reference); `entropy` of the policy in
        nats; `top1`: probability of its likeliest token. All from one pass.

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
        sums, by_row = [0.0] * 5, []  # log-probs, entropies, top probabilities, KL, tokens; (log-prob, tokens) of rows
        kept = self.start_hidden.setdefault(held_out.name, [])
        for index, group in enumerate(shares[self.state.process_index]):
            batch = collate(group, self.pad_id, self.layout).to(self.device)
            hidden = hidden_states(model, batch)
            each = read_logits(causal_lm(model), hidden, partial(tell, batch.targets))  # (M, 3)
            told, kl = each.sum(0).tolist(), 0.0
            if at_start:
                kept.append(hidden.cpu())
            elif references is not None:
                kl = self._kl(model, references, batch, hidden, kept[index] if kept else None)
            if batch.rows:
                by_row += _by_row(each[:, 0], batch)
                sums = [one + other for one, other in zip(sums, [*told, kl, len(batch.targets)], strict=True)]
        *totals, tokens = (sum(values) for values in zip(*gather_object([sums]), strict=True))
        rows = np.array(gather_object(by_row)).reshape(-1, 2)
        logps, entropies, top1, kl = (total / max(tokens, 1) for total in totals)
        return {
            "role": held_out.role,
            "logps": logps,
            "kl": None if references is None else kl,
            "entropy": entropies,
            "top1": top1,
            "tokens": int(tokens),
            "responses": sum(len(row.responses) for row in held_out.rows),
        } | self._intervals(held_out.name, rows, at_start)

    def _intervals(self, name: str, rows: np.ndarray, at_start: bool) -> dict:
        """Of the mean log-prob, and of its change since the start; `rows` (R, 2) come in the same order every time."""
        if at_start:
            self.start_rows[name] = rows
        found = {"logps_interval": of_ratio(*rows.T)}
        if not at_start and name in self.start_rows:
            found["change_interval"] = of_ratio(rows[:, 0] - self.start_rows[name][:, 0], rows[:, 1])
        return {key: list(ends) for key, ends in found.items() if ends}

    def _kl(self, model, references: References, batch: MicroBatch, hidden, start_hidden) -> float:
        """Sum over the response tokens of KL(policy || reference)."""
        with references.model(references.policy, model) as reference:
            if start_hidden is None or references.policy not in (ADAPTER_OFF, FROZEN):
                ref_hidden = hidden_states(reference, batch)
            else:
                ref_hidden = start_hidden.to(self.device)
        return kl_divergence(model, hidden, reference, ref_hidden).sum().item()


def _by_row(logps: torch.Tensor, batch: MicroBatch) -> list[tuple[float, int]]:
    """(log-prob, tokens) of all responses of each row, from the log-probs (M,) of the response tokens."""
    lengths = batch.mask.sum(-1)  # (N,)
    owner = batch.prompt.repeat_interleave(lengths)  # (M,)
    sums = torch.zeros(len(batch.rows), dtype=torch.float64, device=logps.device).index_add(0, owner, logps.double())
    counts = torch.zeros(len(batch.rows), dtype=torch.long, device=logps.device).index_add(0, batch.prompt, lengths)
    return list(zip(sums.tolist(), counts.tolist(), strict=True))


def tell(targets: torch.Tensor, logits: torch.Tensor, at: slice) -> torch.Tensor:
    """(C, 3) log-prob of the targets, entropy, and probability of the likeliest token, from logits (C, V)."""
    return torch.stack([log_probs_of(logits, targets[at]), entropy(logits), top_mass(logits, 1)], dim=-1)
