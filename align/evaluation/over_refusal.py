"""Over-refusal: how many harmless prompts are answered with a refusal.

Told by how a greedy answer begins (`align.data.doctor_checks.refuses`): what refuses later, or in other words, is
missed, in the base as in the policy. Whether the prompts are harmless is for who names them; builtin:benign's are.
"""

from __future__ import annotations

import numpy as np

from align.data.doctor_checks import prompt_texts, refuses
from align.evaluation import figures
from align.evaluation.probe import Probe
from align.evaluation.rows import Rows

SHOWN = 5


def evaluate(probe: Probe, rows: Rows) -> dict:
    """The share of refusals among greedy answers. Raises UserError if no prompt can be asked."""
    examples, answers = probe.answers(rows.examples, rows.ledger, rows.where)
    decode = probe.subject.tokenizer.decode
    texts = {name: [decode(ids, skip_special_tokens=True).strip() for ids in own] for name, own in answers.items()}
    refused = {name: np.array([refuses(text) for text in own]) for name, own in texts.items()}
    shown = []
    for name, own in texts.items():
        refusals = [(example, text) for example, text in zip(examples, own, strict=True) if refuses(text)]
        shown += [
            {"model": name, "prompt": prompt_texts(example)[-1], "answer": text} for example, text in refusals[:SHOWN]
        ]
    return {"metrics": {"answered with a refusal": figures.shares(refused)}, "refusals": shown}
