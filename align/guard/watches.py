"""What the guard measures: one forward pass over a few rows, and some short answers.

Everything is told as what has changed since the start of the run, in the unit of its budget. Where the probability goes
that is taken from negatives is looked at within them: to the likeliest token (pushing down what is unlikely anyway
sharpens the distribution), or to tokens that have been written before.

Shapes: C positions of a chunk, T response tokens of a row, M response tokens, K likeliest.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.data.tokenize import TokenizedRow
from align.generation import generate
from align.guard.rows import FixedRows
from align.scoring.extras import entropy, repeated_mass, top_mass
from align.scoring.head import Read, log_probs_of
from align.scoring.likeliest import class_logps, divergence

# watch -> what its value is, for a person
WORDS = {
    "positive": "the log-prob of positives fell by {:.2f} nat a token",
    "sample": "the log-prob of samples fell by {:.2f} nat a token",
    "retain": "the log-prob of retain rows fell by {:.2f} nat a token",
    "benign": "the log-prob of good answers to neutral prompts fell by {:.2f} nat a token",
    "kl": "KL(policy || start) on neutral prompts is {:.2f} nat a token",
    "entropy": "the entropy on neutral prompts changed by {:.2f} nat",
    "top1": "within negatives the likeliest token's probability rose by {:.2f}",
    "repeated": "within negatives the probability of tokens written before rose by {:.2f}",
    "repetition": "the share of repeated runs in short answers rose by {:.2f}",
    "length": "short answers lost a share of {:.2f} of their length",
    "displacement": "negatives pull the rest down {:.2f} times as hard as it is held",
}
_ANSWERS, _ANSWER_TOKENS = 2, 16
_READ = ("logps", "entropy", "top1", "repeated", "kl")


class Watches:
    """Measures a policy; every rank must take part, and all get the same numbers.

    `groups` maps a kind of rows ("benign", "negative", "positive", "retain") to the rows, which lie in `rows` one
    behind the other. `generator` is the policy as answers are generated with it.
    """

    def __init__(self, groups: dict[str, list[TokenizedRow]], rows: FixedRows, generator: nn.Module, tokenizer):
        self.groups, self.rows, self.generator, self.tokenizer = groups, rows, generator, tokenizer
        self.start: dict[str, float] = {}

    def begin(self, model: nn.Module) -> None:
        """Takes the policy as it is now for the start, but for its answers."""
        self.start = self._values(self.rows.note_start(model, _reader))

    @property
    def has_answers(self) -> bool:
        """Whether it is known how the start answered; before that no answers can be measured."""
        return "length" in self.start or not self.groups["benign"]

    def begin_answers(self) -> None:
        """Takes the answers of the policy as it is now for those of the start."""
        self.start |= self._answers()

    def measure(self, model: nn.Module, *, with_answers: bool) -> dict[str, float]:
        """watch -> how far it has gone; those of rows that there are none of are left out."""

        def reader(batch: MicroBatch) -> Read:
            usual, (ids, start) = _reader(batch), self.rows.start_of(batch)

            def read(logits: Tensor, at: slice) -> Tensor:
                kl = divergence(class_logps(logits, ids[at]), start[at])
                return torch.cat([usual(logits, at), kl[:, None]], dim=-1)

            return read

        now, start = self._values(self.rows.scores(model, reader)), self.start
        now |= self._answers() if with_answers else {}
        values = {name: start[name] - now[name] for name in ("benign", "positive", "retain") if name in now}
        values |= {name: now[name] - start[name] for name in ("top1", "repeated", "repetition") if name in now}
        if "benign" in now:
            values |= {"kl": now["kl"], "entropy": abs(now["entropy"] - start["entropy"])}
        if "length" in now:
            values["length"] = 1 - now["length"] / max(start["length"], 1.0)
        return values

    def _values(self, told: list[Tensor]) -> dict[str, float]:
        """What is watched, as it is, from what was read at each token (T, 4 or 5) of each row."""
        found, first = {}, 0
        for name, own in self.groups.items():
            if own:
                means = torch.cat(told[first : first + len(own)]).double().mean(0).tolist()
                found[name] = dict(zip(_READ, means, strict=False))
            first += len(own)
        values = {name: found[name]["logps"] for name in ("benign", "positive", "retain") if name in found}
        for name, names in (("benign", ("entropy", "kl")), ("negative", ("top1", "repeated"))):
            values |= {one: found[name][one] for one in names if one in found.get(name, {})}
        return values

    def _answers(self) -> dict[str, float]:
        """Mean length and repetition of short answers to neutral prompts."""
        prompts = [list(row.prompt_ids) for row in self.groups["benign"][:_ANSWERS]]
        if not prompts:
            return {}
        answers = gather_object([generate(self.generator, self.tokenizer, prompts, _ANSWER_TOKENS)])[0]
        lengths = [len(answer) for answer in answers]
        return {"length": sum(lengths) / len(lengths), "repetition": sum(map(repetition, answers)) / len(answers)}


def _reader(batch: MicroBatch) -> Read:
    """Reads (C, 4) of logits (C, V): what `_READ` names, but for the KL."""
    repeated = repeated_mass(batch)

    def read(logits: Tensor, at: slice) -> Tensor:
        values = [log_probs_of(logits, batch.targets[at]), entropy(logits), top_mass(logits, 1), repeated(logits, at)]
        return torch.stack(values, dim=-1)

    return read


def repetition(ids: Sequence[int]) -> float:
    """The share of an answer's runs of four tokens that have occurred before in it; 0 for one shorter than five."""
    runs = [tuple(ids[start : start + 4]) for start in range(len(ids) - 3)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0
