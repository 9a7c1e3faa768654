"""The sources of a recipe that are too large to be read before the run: looked at, opened, and mixed.

A look at the first rows of each source tells, before anything is trained, whether they are whole and of use, and how
many of their answers are of which role; it also gives the rows to measure on.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from accelerate import PartialState

from align.data import sources
from align.data.encode import Encoder
from align.data.examples import Example, RowError
from align.data.lanes import Lane, Parse
from align.data.ledger import Ledger
from align.data.load import (
    ROLES,
    HeldOutSet,
    by_role,
    check_usable,
    held_out_sets,
    mix_of,
    no_retain_rows,
    roles_of,
    without_rewards,
)
from align.data.mixture import Mixture, fixed
from align.data.stream import LANES, Channel, StreamFeed, own_lanes
from align.data.tokenize import TokenizedRow
from align.errors import UserError, shorten
from align.objectives import Objective

if TYPE_CHECKING:
    from align.data.options import Source
    from align.recipe import Recipe

LOOKED_AT = 512  # rows of each source
LARGE = 2**28  # bytes of local files; from here on `auto` streams
LARGE_HUB = 200_000  # rows of a hub data set
MOST_BUFFERED = 2**26  # characters of the rows of a source that wait in its shuffle buffers
_HELD_OUT = 512  # most rows of a source to measure on


def is_streamed(recipe: Recipe) -> bool:
    """Whether the training rows of a recipe are read while it runs."""
    if recipe.data.streaming != "auto":
        return recipe.data.streaming == "always"
    named = [*recipe.data.sources, *recipe.retain.sources]
    if sum(sum(sources.sizes(source.path).values()) for source in named) >= LARGE:
        return True
    hub = (one for one in named if not one.path.startswith(sources.BUILTIN) and not sources.is_local(one.path))
    return any((sources.size(source.path, source.split) or 0) >= LARGE_HUB for source in hub)


@dataclass
class _Look:
    """What the first rows of a source told."""

    source: Source
    size: float | None  # rows that are left to learn from, about
    rows: list[TokenizedRow] = field(default_factory=list)
    held_out: list[Example] = field(default_factory=list)


class Streams:
    """Stands where `load.Rows` does for rows in memory."""

    def __init__(self, recipe: Recipe, tokenizer, objective: Objective):
        if "samples" in objective.needs and not recipe.sampling.every:
            fix = "draw as the run goes on: sampling.every=N"
            raise UserError("data.streaming", "samples cannot be drawn at the start for rows that are streamed", fix)
        self.recipe, self.encoder, self.objective = recipe, Encoder(recipe, tokenizer, objective), objective
        self.ledger = Ledger()  # what all ranks count alike
        counted = Ledger()  # of the look: its rows are read again
        self.looks = [self._look(source, counted) for source in recipe.data.sources]
        found = [row for look in self.looks for row in look.rows]
        check_usable(found, self.encoder, counted)
        self.has_rewards = all(map(self._is_rewarded, found))  # else no objective sees any
        kept_out = [(look.source.path, example) for look in self.looks for example in look.held_out]
        self.held_out: list[HeldOutSet] = held_out_sets(recipe, kept_out, self.encoder, self.ledger)
        self.retain = bool(recipe.retain.sources)

    def summary(self) -> str:
        """One line for the screen."""
        sizes = [look.size for look in self.looks]
        about = "an unknown number of" if None in sizes else f"about {sum(sizes):,.0f}"
        return f"streams {about} rows from {len(sizes)} source{'s' * (len(sizes) > 1)}, {LANES} parts each at most"

    def feed(self, recipe: Recipe) -> StreamFeed:
        """The rows of each step."""
        ledger, dealt, channels, titles, weights = Ledger(), itertools.count(), [], [], []
        are_known = all(look.size is not None for look in self.looks)  # else sources are mixed by their weights alone
        for look in self.looks:
            for role, share in self._roles(look):
                title = look.source.path if role is None else f"{look.source.path}: {role}"
                size = look.size and look.size * share
                parse, encode = partial(self._parse, look.source), partial(self._encode, role)
                channels.append(self._channel(title, look.source, size, parse, encode, ledger, dealt))
                titles.append(role or "both")
                weights.append(look.source.weight * share * (look.size if are_known else 1.0))
        steps = self._steps(weights)
        return StreamFeed(channels, mix_of(recipe, titles, weights, steps), steps, ledger=ledger)

    def first(self) -> tuple[list[TokenizedRow], list[TokenizedRow]]:
        """Rows that the run learns from, and rows of its retain term: the first of each source."""
        aside = Ledger()
        retain = [self.encoder.retain_row(example, aside) for source in self.recipe.retain.sources
                  for example in self._first_rows(source, aside)]  # fmt: skip
        return [row for look in self.looks for row in look.rows], [row for row in retain if row is not None]

    def retain_feed(self, recipe: Recipe, steps: int) -> StreamFeed | None:
        """The rows of the retain term of each step."""
        if not self.retain:
            return None
        ledger, dealt, channels, weights = Ledger(), itertools.count(), [], []
        sizes = [sources.size(source.path, source.split) for source in recipe.retain.sources]
        for source, size in zip(recipe.retain.sources, sizes, strict=True):
            parse = partial(self._parse, source, holds_out=False)
            channels.append(self._channel(source.path, source, size, parse, self._encode_retain, ledger, dealt))
            weights.append(source.weight * (1.0 if None in sizes else max(size, 1.0)))
            if not any(one.texts("positive") for one in self._first_rows(source, Ledger())):
                raise no_retain_rows()
        return StreamFeed(channels, Mixture(fixed(weights), recipe.retain.prompts_per_step), steps, ledger=ledger)

    def _first_rows(self, source: Source, counted: Ledger) -> list[Example]:
        how = {"on_bad_rows": self.recipe.data.on_bad_rows, "ledger": counted, "most": LOOKED_AT}
        return sources.read(source.path, source.split, **how)

    def _look(self, source: Source, counted: Ledger) -> _Look:
        found = self._first_rows(source, counted)
        share = 0.0 if source.path.startswith(sources.BUILTIN) else self.recipe.eval.holdout
        train, aside = sources.split_holdout(found, share)
        size = sources.size(source.path, source.split)
        if size is not None:  # an estimate, and where files are damaged a poor one: so many are there at least
            size = max(size, len(found)) * (1 - share)
        look = _Look(source, size, held_out=aside[:_HELD_OUT])
        for example in train:
            for part in by_role(example) if self.recipe.data.mix else [example]:
                look.rows += self.encoder.training_rows(part, counted)
        if not look.rows:
            check_usable(look.rows, self.encoder, counted)
        return look

    def _roles(self, look: _Look) -> Iterator[tuple[str | None, float]]:
        """(role, share of the rows) of the channels of a source: one for all its rows, unless roles are mixed.

        They are where the recipe says how, and where rows have answers of one role alone: no step of an objective on
        single responses may bring one role only.
        """
        counts = [sum(roles_of(row) == role for row in look.rows) for role in ROLES]
        if self.recipe.data.mix is None and ("responses" not in self.objective.needs or counts[2]):
            yield None, 1.0
            return
        for role, count in zip(ROLES[:2], counts[:2], strict=True):
            if count:
                yield role, count / sum(counts)

    def _channel(self, title, source, size, parse: Parse, encode, ledger: Ledger, dealt: Iterator[int]) -> Channel:
        parts = sources.parts(source.path, source.split, LANES)
        rank, world = PartialState().process_index, PartialState().num_processes
        own = own_lanes(len(parts), next(dealt) * LANES, rank, world)
        lanes = [
            Lane(
                f"{self.recipe.train.seed}/{title}/{index}", part, parse, encode,
                math.ceil(self.recipe.data.shuffle_buffer / len(parts)), MOST_BUFFERED // len(parts),
                self.recipe.data.on_bad_rows == "skip", ledger, source.path,
            ) if is_own else None
            for index, (part, is_own) in enumerate(zip(parts, own, strict=True))
        ]  # fmt: skip
        return Channel(title, lanes, size, sources.sizes(source.path))

    def _parse(self, source: Source, place, row, ledger: Ledger, holds_out: bool = True) -> Example | None:
        try:
            example = sources.record(source.path, place, row, ledger)
        except RowError as error:
            if self.recipe.data.on_bad_rows != "skip":
                raise UserError(str(place), shorten(str(error), 200), f"mend it, or {sources.SKIP}") from None
            sources.drop_broken(place, error, ledger)
            return None
        is_builtin = source.path.startswith(sources.BUILTIN)  # these come with a held-out part of their own
        if holds_out and not is_builtin and sources.is_held_out(example, self.recipe.eval.holdout):
            ledger.drop("held out", place)
            return None
        return example

    def _encode(self, role: str | None, example: Example, ledger: Ledger) -> Iterator[TokenizedRow]:
        parts = [example]
        if role is not None:
            wanted = role.removesuffix("s")
            parts = [part for part in by_role(example) if part.responses[0].role == wanted]
        for part in parts:
            for row in self.encoder.training_rows(part, ledger):
                if not self.has_rewards:
                    yield without_rewards(row)
                elif self._is_rewarded(row):
                    yield row
                else:
                    ledger.drop("row dropped: the first rows have rewards, a response here has none", row.example.place)

    def _is_rewarded(self, row: TokenizedRow) -> bool:
        roles = self.objective.roles()
        return all(response.reward is not None for response in row.responses if response.role in roles)

    def _encode_retain(self, example: Example, ledger: Ledger) -> Iterator[TokenizedRow]:
        row = self.encoder.retain_row(example, ledger)
        if row is not None:
            yield row

    def _steps(self, weights: Sequence[float]) -> int:
        options = self.recipe.train
        if options.max_steps is not None:
            return options.max_steps
        unknown = next((look.source.path for look in self.looks if look.size is None), None)
        if unknown:
            what = f"cannot be derived: how many rows {shorten(unknown)} has is not known before it is read"
            raise UserError("train.max_steps", what, "set train.max_steps")
        return max(1, math.ceil(options.epochs * sum(weights) / options.prompts_per_step))
