"""All rows of a recipe, read, split, tokenised and counted, before any weight is loaded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from align.data import mixture, sources
from align.data.encode import Encoder
from align.data.examples import Example
from align.data.ledger import Ledger
from align.data.mixture import Mixture
from align.data.plan import PlannedFeed, StepPlan
from align.data.tokenize import ROLE_NAMES, TokenizedRow
from align.errors import UserError, shorten
from align.objectives import NEGATIVE, POSITIVE, Objective

if TYPE_CHECKING:
    from align.data.options import Source
    from align.recipe import Recipe


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out rows of one role, under the name they have in the table."""

    name: str
    role: str  # positive | negative
    rows: tuple[TokenizedRow, ...]


@dataclass(frozen=True)
class Rows:
    """What a run learns from and what it is measured on, all of it in memory."""

    train: list[TokenizedRow]
    weights: list[float]  # how often a row is used in an epoch
    retain: list[TokenizedRow]  # rows of the retain term
    retain_weights: list[float]
    held_out: list[HeldOutSet]
    ledger: Ledger
    paths: list[str] = field(default_factory=list)  # the source of each of `train`
    both_roles: bool = True  # no step may bring answers of one role alone, if there are some of both

    def summary(self) -> str:
        """One line for the screen: rows read, used, and dropped by reason."""
        dropped = "".join(f" · {reason}: {count}" for reason, count in sorted(self.ledger.dropped.items()))
        retain = f", retain {len(self.retain)}" if self.retain else ""
        return f"rows read {self.ledger.read}, used {self.ledger.used}{retain}{dropped}"

    def feed(self, recipe: Recipe) -> PlannedFeed:
        """The rows of each step."""
        options, mix = recipe.train, recipe.data.mix
        given = {"prompts_per_step": options.prompts_per_step, "epochs": options.epochs,
                 "max_steps": options.max_steps, "seed": options.seed}  # fmt: skip
        roles = [roles_of(row) for row in self.train]
        titles = [title for title in ROLES if title in set(roles)]
        if len(titles) == 1 or (mix is None and not self.both_roles):
            return PlannedFeed(self.train, StepPlan(self.weights, **given), self.paths)
        group_of = [titles.index(one) for one in roles]
        sums = [sum(w for w, own in zip(self.weights, group_of, strict=True) if own == g) for g in range(len(titles))]

        def mixed(steps: int) -> Mixture:
            return mix_of(recipe, titles, sums, steps)

        plan = StepPlan(self.weights, group_of=group_of, mixture=mixed, **given)
        return PlannedFeed(self.train, plan, [f"{path}: {one}" for path, one in zip(self.paths, roles, strict=True)])

    def first(self) -> tuple[list[TokenizedRow], list[TokenizedRow]]:
        """Rows that the run learns from, and rows of its retain term: here all."""
        return self.train, self.retain

    def retain_feed(self, recipe: Recipe, steps: int) -> PlannedFeed | None:
        """The rows of the retain term of each step."""
        if not self.retain:
            return None
        plan = StepPlan(
            self.retain_weights, prompts_per_step=recipe.retain.prompts_per_step, epochs=1, max_steps=steps,
            seed=recipe.train.seed,
        )  # fmt: skip
        return PlannedFeed(self.retain, plan)


ROLES = ("positives", "negatives", "both")  # what the answers of a row are


def roles_of(row: TokenizedRow) -> str:
    """Which of ROLES a row is."""
    found = {response.role for response in row.responses}
    return "both" if {POSITIVE, NEGATIVE} <= found else "positives" if POSITIVE in found else "negatives"


def mix_of(recipe: Recipe, titles: list[str], sizes: list[float], steps: int) -> Mixture:
    """How groups of rows, each of one of ROLES, are mixed: as `data.mix` says, or by their `sizes`."""
    mix = recipe.data.mix
    shares = mixture.fixed(sizes)
    if mix is not None:
        end = mix.positives if mix.final is None else mix.final
        shares = mixture.by_role(sizes, [title == "positives" for title in titles], mix.positives, end, steps)
    together = [{g for g, title in enumerate(titles) if title in (role, "both")} for role in ("positives", "negatives")]
    return Mixture(shares, recipe.train.prompts_per_step, together if all(together) else ())


def load(recipe: Recipe, tokenizer, objective: Objective) -> Rows:
    """Reads what the recipe names. Raises UserError if nothing usable is left, or a row can never fit a device."""
    ledger, train, weights, paths, encoder = Ledger(), [], [], [], Encoder(recipe, tokenizer, objective)
    kept_out: list[tuple[str, Example]] = []
    for source in recipe.data.sources:
        examples = sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=ledger)
        if not source.path.startswith(sources.BUILTIN):  # builtin sets come with a held-out part of their own
            examples, aside = sources.split_holdout(examples, recipe.eval.holdout)
            kept_out += [(source.path, example) for example in aside]
            for example in aside:
                ledger.drop("held out", example.place)
        for example in examples:
            for part in by_role(example) if recipe.data.mix else [example]:
                rows = list(encoder.training_rows(part, ledger))
                train += rows
                weights += [source.weight] * len(rows)
                paths += [source.path] * len(rows)
    train = _same_rewards(train, objective.roles(), ledger)
    ledger.used = len(train)
    for path, row in zip(paths, train, strict=True):
        ledger.count(path, row.roles())
    check_usable(train, encoder, ledger)
    retain, retain_weights = _retain_rows(recipe, encoder, ledger)
    held_out = held_out_sets(recipe, kept_out, encoder, ledger)
    return Rows(train, weights, retain, retain_weights, held_out, ledger, paths, "responses" in objective.needs)


def by_role(example: Example) -> list[Example]:
    """The record with its positives alone, and with its negatives alone, where it has any."""
    parts = [
        dataclasses.replace(example, responses=tuple(one for one in example.responses if one.role == role))
        for role in ("positive", "negative")
    ]
    return [part for part in parts if part.responses]


def check_usable(rows: list[TokenizedRow], encoder: Encoder, ledger: Ledger) -> None:
    """Raises UserError if there are no rows, or none has what the recipe asks of some."""
    recipe = encoder.recipe
    if not rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(ledger.dropped.items()))
        raise UserError("data.sources", f"no row can be used ({reasons or 'none were read'})", encoder.way_out())
    if encoder.weighs_steps and not any(response.step_labels for row in rows for response in row.responses):
        fix = "give rows with judged 'steps', or leave contradicting_steps and unjudged_steps out"
        raise UserError("weights", "weighs steps, but no step of any row is judged", fix)
    if recipe.retain.positives and not any(r.role == POSITIVE for row in rows for r in row.responses):
        raise UserError("retain.positives", "no row has a positive", "give rows with good answers, or retain.sources")
    if recipe.data.mix and len({roles_of(row) for row in rows}) < 2:
        have = roles_of(rows[0])
        raise UserError("data.mix", f"mixes positives and negatives, but all rows are {have}", "leave data.mix out")
    for role in encoder.objective.adapters:
        if not any(response.role == role for row in rows for response in row.responses):
            what = f"no row has a {ROLE_NAMES[role]}, so the {ROLE_NAMES[role]} head would learn nothing"
            raise UserError("data.sources", what, "give such rows, or choose objective.heads")
    encoder.check_instruction(rows[0])


def _same_rewards(train: list[TokenizedRow], roles: set[int], ledger: Ledger) -> list[TokenizedRow]:
    """The rows with rewards on all responses of the objective's `roles`, or on none.

    What an objective sees must not depend on the micro-batch.
    """
    lacking = [any(r.reward is None for r in row.responses if r.role in roles) for row in train]
    if not any(lacking) or all(r.reward is None for row in train for r in row.responses if r.role in roles):
        return train
    for row in itertools.compress(train, lacking):
        ledger.drop("rewards of the run unused: a response here has none", row.example.place)
    return [without_rewards(row) for row in train]


def without_rewards(row: TokenizedRow) -> TokenizedRow:
    return dataclasses.replace(row, responses=tuple(dataclasses.replace(r, reward=None) for r in row.responses))


def _retain_rows(recipe: Recipe, encoder: Encoder, ledger: Ledger) -> tuple[list[TokenizedRow], list[float]]:
    """Rows of the retain term, with their positives only, and how often each is used."""
    rows, weights, aside = [], [], Ledger()
    for source in recipe.retain.sources:
        for example in sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=aside):
            row = encoder.retain_row(example, aside)
            if row is not None:
                rows.append(row)
                weights.append(source.weight)
                aside.count(source.path, row.roles())
    ledger.merge(aside, "retain: ")
    if recipe.retain.sources and not rows:
        raise no_retain_rows()
    return rows, weights


def no_retain_rows() -> UserError:
    return UserError("retain.sources", "no row has a positive", "give rows with good answers, or leave retain out")


def held_out_sets(
    recipe: Recipe, kept_out: Iterable[tuple[str, Example]], encoder: Encoder, ledger: Ledger
) -> list[HeldOutSet]:
    """The rows to measure on: those of `eval.sources`, and those kept out of the training sources."""
    groups: dict[str, list[Example]] = {}
    aside = Ledger()  # the rows read for the run are those it learns from; only what is dropped counts here
    for source in recipe.eval.sources:
        groups.setdefault(_title(source), []).extend(
            sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=aside)
        )
    for path, example in kept_out:
        groups.setdefault(shorten(path, 28), []).append(example)
    sets = []
    for title, examples in groups.items():
        rows = [encoder.held_out_row(example, aside) for example in examples]
        for role, number, label in (("negative", NEGATIVE, "negatives"), ("positive", POSITIVE, "good answers")):
            of_role = tuple(_of_role(row, number) for row in rows if row is not None)
            of_role = tuple(row for row in of_role if row.responses)
            if of_role:
                sets.append(HeldOutSet(f"{title}: {label}", role, of_role))
    ledger.merge(aside, "held-out: ")
    return sets


def _of_role(row: TokenizedRow, role: int) -> TokenizedRow:
    responses = tuple(response for response in row.responses if response.role == role)
    return dataclasses.replace(row, responses=responses)


def _title(source: Source) -> str:
    return (
        f"{shorten(source.path, 28)} {source.split}"
        if source.path.startswith(sources.BUILTIN)
        else shorten(source.path, 28)
    )
