"""Rows to micro-batches: the tensors that model and objective see.

Shapes: N responses, S tokens, T tokens of the longest response, M response tokens in all, P pairs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from align.data.examples import Example
from align.data.layout import NONE, PADDED, Tokens, arrange
from align.data.tokenize import TokenizedResponse, TokenizedRow


@dataclass(frozen=True)
class MicroBatch:
    """Some rows, in one of the layouts."""

    rows: tuple[TokenizedRow, ...]  # empty: nothing to learn here, this rank only keeps step with the others
    tokens: Tokens
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
    pad_id: int = 0
    layout: str = PADDED
    recompute: str = NONE  # what the backward pass computes again, the same on all ranks

    def to(self, device: torch.device) -> MicroBatch:
        moved = {
            field.name: value.to(device)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        tokens = Tokens(*(None if value is None else value.to(device) for value in self.tokens))
        return dataclasses.replace(self, tokens=tokens, **moved)

    def select(self, responses: Tensor) -> MicroBatch:
        """The responses (N,) bool of this micro-batch as one of their own, on the same device."""
        kept, rows = iter(responses.tolist()), []
        for row in self.rows:
            own = tuple(response for response in row.responses if next(kept))
            if own:
                rows.append(dataclasses.replace(row, responses=own))
        return collate(rows, self.pad_id, self.layout).to(self.role.device)

    def is_for(self, roles: set[int]) -> Tensor:
        """(N,) bool: the responses that an objective which reads `roles` sees; never those of the retain rows."""
        of_role = torch.isin(self.role, torch.tensor(sorted(roles), device=self.role.device))
        first = torch.arange(len(self.role), device=self.role.device) < len(self.role) - self.num_retain
        return of_role & first if self.rows else torch.zeros_like(first)

    def for_objective(self, roles: set[int]) -> MicroBatch:
        """The responses an objective which reads `roles` sees; a stand-in without rows if there are none.

        Rewards and behaviour are there if all of these responses have them: `load` sees to it that all of a run do,
        or none. Those that the objective does not see (of the retain term) need not.
        """
        chosen = self.is_for(roles)
        part = self if chosen.all() else self.select(chosen)
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
        if not self.rows:
            return 0
        return int(self.tokens.attention_mask.sum()) if self.layout == PADDED else self.tokens.input_ids.numel()


def collate(rows: Sequence[TokenizedRow], pad_id: int, layout: str = PADDED) -> MicroBatch:
    """The tensors of some rows; no rows give a stand-in of two tokens that nothing is learned from."""
    if not rows:
        nothing = TokenizedRow((pad_id,), (TokenizedResponse((pad_id,), 0),), Example("", (), "", ""))
        return dataclasses.replace(collate([nothing], pad_id, layout), rows=())
    rows = sorted(rows, key=lambda row: row.retain)
    flat = [(index, response) for index, row in enumerate(rows) for response in row.responses]
    responses = [response for _, response in flat]
    lengths = torch.tensor([len(response.ids) for response in responses])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return MicroBatch(
        rows=tuple(rows),
        tokens=arrange(rows, pad_id, layout),
        targets=torch.tensor([token for response in responses for token in response.ids]),
        mask=mask,
        role=torch.tensor([response.role for response in responses]),
        prompt=torch.tensor([index for index, _ in flat]),
        pairs=_pairs(flat),
        weight=torch.tensor([response.weight for response in responses]),
        reward=_rewards(responses),
        step_label=_per_token([response.step_labels for response in responses], mask, fill=0),
        token_weight=_per_token([response.token_weights for response in responses], mask, fill=1.0),
        behavior_logps=_per_token([response.behavior_logps for response in responses], mask, fill=math.nan),
        num_retain=sum(len(row.responses) for row in rows if row.retain),
        pad_id=pad_id,
        layout=layout,
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
    positives = [(prompt, index) for index, (prompt, response) in enumerate(flat) if response.role > 0]
    negatives = [(prompt, index) for index, (prompt, response) in enumerate(flat) if response.role < 0]
    pairs = [(good, bad) for one, good in positives for other, bad in negatives if one == other]
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2)
