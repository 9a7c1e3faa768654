"""Rows to micro-batches: which rank forwards which rows, and the tensors of the padded layout.

Shapes: N responses, S tokens of the longest prompt plus response, T tokens of the longest response,
M response tokens in all, P pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.data.tokenize import TokenizedResponse, TokenizedRow

_OPTIONAL = ("reward", "step_label", "token_weight", "behavior_logps")


@dataclass(frozen=True)
class MicroBatch:
    """Some rows, padded on the right: every response behind its own copy of the prompt."""

    rows: tuple[TokenizedRow, ...]  # empty: nothing to learn here, this rank only keeps step with the others
    input_ids: Tensor  # (N, S)
    attention_mask: Tensor  # (N, S)
    positions: Tensor  # (M,) where in the flattened (N*S) tokens the prediction of a response token is read
    targets: Tensor  # (M,) the response tokens
    mask: Tensor  # (N, T) bool; its true entries, row by row, are the M tokens above
    role: Tensor  # (N,)
    prompt: Tensor  # (N,)
    pairs: Tensor  # (P, 2)
    weight: Tensor  # (N,)
    reward: Tensor | None  # (N,) nan where a response has none, 0 for samples; None: nothing here has one
    step_label: Tensor | None = None  # (N, T) 1 good, -1 bad, 0 unjudged; None: nothing here is judged
    token_weight: Tensor | None = None  # (N, T); None: every token weighs 1
    behavior_logps: Tensor | None = None  # (N, T) nan where a response has none; None: nothing here has them
    num_retain: int = 0  # how many of the N responses, the last ones, belong to the retain term

    def to(self, device: torch.device) -> MicroBatch:
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def select(self, responses: Tensor) -> MicroBatch:
        """The same micro-batch with the responses (N,) bool only; pairs and rows are left out."""
        token = responses[:, None].expand(self.mask.shape)[self.mask]  # (M,)
        row = self.positions[token] // self.input_ids.shape[1]
        rank = responses.long().cumsum(0) - 1
        positions = rank[row] * self.input_ids.shape[1] + self.positions[token] % self.input_ids.shape[1]
        return MicroBatch(
            rows=(),
            input_ids=self.input_ids[responses],
            attention_mask=self.attention_mask[responses],
            positions=positions,
            targets=self.targets[token],
            mask=self.mask[responses],
            role=self.role[responses],
            prompt=self.prompt[responses],
            pairs=self.pairs[:0],
            weight=self.weight[responses],
            **{name: None if getattr(self, name) is None else getattr(self, name)[responses] for name in _OPTIONAL},
        )

    def is_for(self, roles: set[int]) -> Tensor:
        """(N,) bool: the responses that an objective which reads `roles` sees; never those of the retain rows."""
        of_role = torch.isin(self.role, torch.tensor(sorted(roles), device=self.role.device))
        first = torch.arange(len(self.role), device=self.role.device) < len(self.role) - self.num_retain
        return of_role & first if self.rows else torch.zeros_like(first)

    def for_objective(self, roles: set[int]) -> MicroBatch:
        """The responses an objective which reads `roles` sees, with their pairs if it reads both sides of them.

        Rewards and behaviour are there if all of these responses have them: `load` sees to it that all of a run do,
        or none. Those that the objective does not see (of the retain term) need not.
        """
        chosen, part = self.is_for(roles), self
        if not chosen.all():
            place = chosen.long().cumsum(0) - 1
            pairs = place[self.pairs[chosen[self.pairs].all(-1)]]
            part = dataclasses.replace(self.select(chosen), rows=self.rows, pairs=pairs)
        given = {name: getattr(part, name) for name in ("reward", "behavior_logps")}
        lacking = [name for name, values in given.items() if values is not None and values.isnan().any()]
        return dataclasses.replace(part, **dict.fromkeys(lacking)) if lacking else part

    def is_retained(self, positives: bool) -> Tensor:
        """(N,) bool: the responses of the retain term, with the other rows' positives or without."""
        last = torch.arange(len(self.role), device=self.role.device) >= len(self.role) - self.num_retain
        return last | (positives & (self.role > 0))

    @property
    def num_tokens(self) -> int:
        """Tokens forwarded, padding not counted."""
        return int(self.attention_mask.sum()) if self.rows else 0


def collate(rows: Sequence[TokenizedRow], pad_id: int) -> MicroBatch:
    """The padded layout of some rows; no rows give a stand-in of two tokens that nothing is learned from."""
    rows = sorted(rows, key=lambda row: row.retain)
    if not rows:
        token, one = torch.tensor([[pad_id, pad_id]]), torch.ones(1)
        return MicroBatch(
            (), token, torch.ones_like(token), torch.tensor([0]), token[0, :1], torch.ones(1, 1, dtype=torch.bool),
            torch.tensor([0]), torch.tensor([0]), torch.empty(0, 2, dtype=torch.long), one, None,
        )  # fmt: skip
    flat = [(index, row.prompt_ids, response) for index, row in enumerate(rows) for response in row.responses]
    n = len(flat)
    s = max(len(prompt_ids) + len(response.ids) for _, prompt_ids, response in flat)
    t = max(len(response.ids) for _, _, response in flat)
    input_ids = torch.full((n, s), pad_id)
    attention_mask = torch.zeros(n, s, dtype=torch.long)
    mask = torch.zeros(n, t, dtype=torch.bool)
    positions, targets = [], []
    for index, (_, prompt_ids, response) in enumerate(flat):
        start, end = len(prompt_ids), len(prompt_ids) + len(response.ids)
        input_ids[index, :end] = torch.tensor([*prompt_ids, *response.ids])
        attention_mask[index, :end] = 1
        mask[index, : len(response.ids)] = True
        positions.append(torch.arange(start - 1, end - 1) + index * s)
        targets.append(torch.tensor(response.ids))
    responses = [response for _, _, response in flat]
    return MicroBatch(
        rows=tuple(rows),
        input_ids=input_ids,
        attention_mask=attention_mask,
        positions=torch.cat(positions),
        targets=torch.cat(targets),
        mask=mask,
        role=torch.tensor([response.role for response in responses]),
        prompt=torch.tensor([index for index, _, _ in flat]),
        pairs=_pairs(flat),
        weight=torch.tensor([response.weight for response in responses]),
        reward=_rewards(responses),
        step_label=_per_token([response.step_labels for response in responses], mask, fill=0),
        token_weight=_per_token([response.token_weights for response in responses], mask, fill=1.0),
        behavior_logps=_per_token([response.behavior_logps for response in responses], mask, fill=math.nan),
        num_retain=sum(len(row.responses) for row in rows if row.retain),
    )


def _rewards(responses: list[TokenizedResponse]) -> Tensor | None:
    """(N,) rewards, 0 for samples and nan where there is none; None if nothing but samples has one."""
    if all(response.reward is None for response in responses if response.role):
        return None
    return torch.tensor([_reward(response) for response in responses])


def _reward(response: TokenizedResponse) -> float:
    if response.reward is not None:
        return response.reward
    return math.nan if response.role else 0.0


def _per_token(given: list[tuple | None], mask: Tensor, *, fill: float) -> Tensor | None:
    """(N, T) of values given for each token of some responses, `fill` on those of others; None if none are given."""
    if all(values is None for values in given):
        return None
    tensor = torch.full(mask.shape, fill)  # of the type of `fill`
    for row, values in zip(tensor, given, strict=True):
        if values is not None:
            row[: len(values)] = torch.tensor(values)
    return tensor.masked_fill(~mask, 0)


def _pairs(flat: list) -> Tensor:
    """(P, 2) all (positive, negative) pairs of the same prompt."""
    positives = [(prompt, index) for index, (prompt, _, response) in enumerate(flat) if response.role > 0]
    negatives = [(prompt, index) for index, (prompt, _, response) in enumerate(flat) if response.role < 0]
    pairs = [(good, bad) for one, good in positives for other, bad in negatives if one == other]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)


def padded_tokens(rows: Sequence[TokenizedRow]) -> int:
    """Tokens of the padded layout of some rows, padding included: what `train.tokens_per_device` bounds."""
    lengths = [length for row in rows for length in row.lengths()]
    return len(lengths) * max(lengths, default=0)


def share_out(rows: Sequence[TokenizedRow], *, world: int, tokens_per_device: int) -> list[list[list[TokenizedRow]]]:
    """Deals the rows of a step to ranks: `[rank][micro-batch][row]`, the same number of micro-batches on all.

    A row is never split. Rows of like length lie together, and there are as few micro-batches as
    `tokens_per_device` allows. A rank may get empty micro-batches when there are fewer rows than places.
    """
    ordered = sorted(rows, key=lambda row: max(row.lengths()), reverse=True)
    fewest = max(1, math.ceil(sum(sum(row.lengths()) for row in ordered) / (world * tokens_per_device)))
    for each in range(fewest, max(fewest, len(ordered)) + 1):
        bins = _cut(ordered, world * each)
        if all(padded_tokens(group) <= tokens_per_device for group in bins) or world * each >= len(ordered):
            break
    return [bins[rank::world] for rank in range(world)]


def _cut(ordered: list[TokenizedRow], count: int) -> list[list[TokenizedRow]]:
    """`count` runs of neighbouring rows with about the same number of tokens; one row each where that is all."""
    bins: list[list[TokenizedRow]] = [[] for _ in range(count)]
    if count >= len(ordered):
        for index, row in enumerate(ordered):
            bins[index].append(row)
        return bins
    total, before = sum(sum(row.lengths()) for row in ordered), 0.0
    for row in ordered:
        size = sum(row.lengths())
        bins[min(int((before + size / 2) * count / total), count - 1)].append(row)
        before += size
    return bins
