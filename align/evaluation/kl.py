"""How far the distributions are from the base's: exact KL(head || base) over the vocabulary, in nats a token.

Measured at each token of the answers that the rows have, behind the answer's own tokens up to there.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from align.data.collate import collate
from align.data.share import share_out
from align.data.tokenize import TokenizedRow
from align.evaluation import drift, figures
from align.evaluation.probe import TOKENS_AT_ONCE, Probe
from align.evaluation.rows import Rows
from align.evaluation.subject import BASE, Subject
from align.objectives import POSITIVE
from align.scoring.answers import under
from align.scoring.head import causal_lm, kl_divergence
from align.scoring.logprobs import hidden_states


def evaluate(probe: Probe, rows: Rows) -> dict:
    """The mean KL of each head but the base, by the role of the answer. Raises UserError if no row can be scored."""
    encoded = probe.rows(rows.examples, rows.ledger, rows.where, drift.NEEDS)
    heads = [name for name in probe.subject.heads if name != BASE]
    sums = {name: divergences(probe.subject, name, encoded, probe.asked(name, encoded)) for name in heads}
    lengths = [np.array([len(one.ids) for one in row.responses]) for row in encoded]
    is_right = [np.array([one.role == POSITIVE for one in row.responses]) for row in encoded]
    metrics = {}
    for role, wanted in (("positives", True), ("negatives", False)):
        chosen = [right == wanted for right in is_right]
        kept = [index for index, mask in enumerate(chosen) if mask.any()]
        if kept:
            tokens = np.array([lengths[index][chosen[index]].sum() for index in kept], float)
            totals = {name: np.array([own[index][chosen[index]].sum() for index in kept]) for name, own in sums.items()}
            metrics[role] = figures.ratios(totals, tokens)
    return {"unit": "nats a token", "metrics": metrics}


@torch.no_grad()
def divergences(
    subject: Subject, name: str, rows: Sequence[TokenizedRow], asked: Sequence[TokenizedRow]
) -> list[np.ndarray]:
    """For each row (K,) the sum over the tokens of each answer of KL(head || base).

    `asked`: the rows as the head is asked, with the same answers.
    """
    head, base = subject.heads[name], subject.heads[BASE]
    device = causal_lm(head.model).get_input_embeddings().weight.device
    own = {id(row): index for index, row in enumerate(asked)}
    found: list = [None] * len(asked)
    (groups,) = share_out(asked, world=1, tokens_per_device=TOKENS_AT_ONCE, layout=subject.layout)
    for group in (group for group in groups if group):
        order = [own[id(row)] for row in group]
        batch, base_batch = (
            collate([under(one[index], role) for index in order], 0, subject.layout).to(device)
            for one, role in ((asked, head.role), (rows, base.role))
        )
        with torch.autocast(device.type, torch.bfloat16, enabled=subject.in_bf16):
            hidden, base_hidden = hidden_states(head.model, batch), hidden_states(base.model, base_batch)
            tokens = kl_divergence(head.model, hidden, base.model, base_hidden).double().cpu()  # (M,)
        sums = [part.sum().item() for part in tokens.split(batch.mask.sum(-1).tolist())]
        for index in order:
            found[index], sums = np.array(sums[: len(rows[index].responses)]), sums[len(rows[index].responses) :]
    return found
