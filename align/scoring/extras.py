"""What objectives may ask of the logits beside the log-prob of the response token: `Batch.extras`, from the same pass.

Shapes: M response positions, C positions of a chunk, V words, S tokens of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

from align.data.collate import MicroBatch
from align.scoring.head import log_probs_of

Extra = Callable[[Tensor, slice], Tensor]  # (logits (C, V), which of the M positions they are of) -> (C,)
Teacher = Callable[[slice], Tensor]  # which of the M positions -> (C, V) probabilities, without gradient

SMALLEST_REST = 1e-5  # 1 - p is not taken to be smaller, as in the unlikelihood authors' code
LARGEST_LOGP = -1e-6  # log p is not taken to be larger under a teacher: the objectives' own bound for 1 - p


def extra(name: str, batch: MicroBatch, *, k: int, seed: int, step: int, teacher: Teacher | None = None) -> Extra:
    """The extra called `name` (see `align.objectives.EXTRAS`) for a micro-batch.

    `k`, `seed` and `step` (of the optimiser) are for the alternatives, `teacher` for the soft unlikelihood.
    """
    if name == "alternatives":
        return _alternatives(batch, k, _draws(batch, seed, step))
    if name == "repeats":
        return _repeats(batch)
    if name == "soft_unlikelihood":
        return _soft_unlikelihood(teacher)
    read = {"entropy": entropy, "concentration": _concentration}[name]
    return lambda logits, at: read(logits)


def entropy(logits: Tensor) -> Tensor:
    """(C,) entropy of the distributions, in nats."""
    logps = logits.log_softmax(-1)
    return -(logps.exp() * logps).sum(-1)


def top_mass(logits: Tensor, k: int) -> Tensor:
    """(C,) probability of the `k` likeliest tokens together."""
    return logits.topk(k).values.sub(logits.logsumexp(-1, keepdim=True)).exp().sum(-1)


@torch.no_grad()
def _concentration(logits: Tensor) -> Tensor:
    """log sum_v p_v^2."""
    return (2 * logits).logsumexp(-1) - 2 * logits.logsumexp(-1)


def _alternatives(batch: MicroBatch, k: int, draws: Tensor) -> Extra:
    """Log-prob of one of the policy's `k` likeliest tokens, the response's left out; `draws` (M,) in [0, 1) choose."""
    chosen: dict[int, Tensor] = {}  # start of a chunk -> (C,) tokens, for the backward pass

    def read(logits: Tensor, at: slice) -> Tensor:
        if at.start not in chosen:
            others = logits.detach().scatter(-1, batch.targets[at, None], -torch.inf)
            likeliest, ids = others.topk(min(k, logits.shape[-1] - 1))
            below = likeliest.softmax(-1).cumsum(-1) <= draws[at, None]  # (C, k)
            place = below.sum(-1, keepdim=True).clamp(max=ids.shape[-1] - 1)
            chosen[at.start] = ids.gather(-1, place).squeeze(-1)
        return log_probs_of(logits, chosen[at.start])

    return read


def _draws(batch: MicroBatch, seed: int, step: int) -> Tensor:
    """(M,) a uniform number for each response token: the same wherever and beside whatever its row is forwarded."""
    numbers = []
    for row in batch.rows:
        for index, response in enumerate(row.responses):
            name = f"{seed}/{step}/{row.example.key}/{index}"
            own = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") >> 1
            numbers.append(torch.rand(len(response.ids), generator=torch.Generator().manual_seed(own)))
    draws = torch.cat(numbers) if numbers else torch.zeros(len(batch.targets))
    return draws.to(batch.targets.device)


def _repeats(batch: MicroBatch) -> Extra:
    """Sum of -log(1 - p(c)) over the distinct tokens c before the position, prompt included, the target left out."""
    candidates = _candidates(batch)

    def read(logits: Tensor, at: slice) -> Tensor:
        rest = -torch.expm1(logits.log_softmax(-1).clamp(max=-1e-12))  # (C, V) 1 - p
        return -(rest.clamp(min=SMALLEST_REST).log() * candidates(logits, at)).sum(-1)

    return read


def repeated_mass(batch: MicroBatch) -> Extra:
    """Probability of the distinct tokens before the position together, prompt included, the target left out."""
    candidates = _candidates(batch)
    return lambda logits, at: (logits.softmax(-1) * candidates(logits, at)).sum(-1)


def _candidates(batch: MicroBatch) -> Extra:
    """(C, V) bool: the tokens before the position, the target left out."""
    ids, own, before = (tensor.to(batch.targets.device) for tensor in _histories(batch))
    columns = torch.arange(ids.shape[1], device=ids.device)

    def read(logits: Tensor, at: slice) -> Tensor:
        targets = batch.targets[at, None]
        earlier = torch.where(columns < before[at, None], ids[own[at]], targets)
        return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, earlier, True).scatter(-1, targets, False)

    return read


def _soft_unlikelihood(teacher: Teacher) -> Extra:
    """Sum over the vocabulary of the teacher's probability times -log(1 - p)."""

    def read(logits: Tensor, at: slice) -> Tensor:
        rest = -torch.expm1(logits.log_softmax(-1).clamp(max=LARGEST_LOGP))  # (C, V) 1 - p
        return -(rest.log() * teacher(at)).sum(-1)

    return read


def _histories(batch: MicroBatch) -> tuple[Tensor, Tensor, Tensor]:
    """(N, S) prompt and response of each response; (M,) which of them each token is of; (M,) tokens before it."""
    flat = [(row.prompt_ids, response.ids) for row in batch.rows for response in row.responses]
    whole = [torch.tensor([*prompt_ids, *ids]) for prompt_ids, ids in flat] or [batch.targets.cpu()]
    own = [index for index, (_, ids) in enumerate(flat) for _ in ids] or [0]
    before = [len(prompt_ids) + place for prompt_ids, ids in flat for place in range(len(ids))] or [0]
    return nn.utils.rnn.pad_sequence(whole, batch_first=True), torch.tensor(own), torch.tensor(before)
