"""Likra: a head that imitates wrong answers, and one that imitates right ones; their likelihood ratio ranks answers.

https://arxiv.org/abs/2503.14391 ("How much do LLMs learn from negative examples?", Hamdan and Yuret, 2025). Two LoRA
adapters on one frozen base. For each token of a positive under the positive adapter, of a negative under the negative:

    L = -log p+    or    L = -log p-

ordinary cross-entropy both times, divided by the number of tokens of that role in the whole optimiser step, and the two
means are added: each head learns what it would alone (but that a clipped gradient norm is that of both). There is no
negated gradient, hence nothing that diverges; what is learned from negatives shows only where the two are compared:

    score(answer) = w+ log p+ - w- log p-          (align/likelihood_ratio.py, `align evaluate`)

`heads: negative` trains the negative one alone, and the base is the positive one; `heads: positive` is supervised
fine-tuning (`nll`). Responses of the other role are then not read. A prompt is forwarded once for each head; what is
shared is one pass of the base's matrices over the tokens of both (align/scoring/routing.py).

Published: r 8, alpha 8 on the MLP's projections, one epoch, constant learning rate 1e-4 (7B) or 1e-3 (3B), one positive
and one negative a question. In tests/test_divergence.py good answers lose at most 0.01 nat a token,
KL is at most 0.10; they are scored by the positive head, which learned from good answers.
"""

from dataclasses import dataclass

import torch

from align.objectives import NEGATIVE, POSITIVE, Batch, Losses, Objective, lift
from align.schema import option

HEADS = {POSITIVE: "positive", NEGATIVE: "negative"}


@dataclass(frozen=True)
class Likra(Objective):
    """Imitates positives with one adapter and negatives with another; their likelihood ratio ranks answers"""

    needs = ("responses", "heads")
    normalize_by = "role_token"

    heads: str = option(
        "both",
        choices=("both", "positive", "negative"),
        doc="Which are trained; without the positive one the base stands in for it.",
    )

    @property
    def adapters(self) -> dict[int, str]:
        return {role: name for role, name in HEADS.items() if self.heads in ("both", name)}

    def roles(self) -> set[int]:
        return set(self.adapters)

    def __call__(self, batch: Batch) -> Losses:
        roles = torch.tensor(sorted(self.adapters), device=batch.role.device)
        is_read = torch.isin(batch.role, roles)[:, None]  # (N, 1); in a run all are, elsewhere the others' loss is 0
        return Losses(torch.where(is_read, -lift(batch.logps), 0.0)[batch.mask])
