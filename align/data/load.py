"""All rows of a recipe, read, split, tokenised and counted, before any weight is loaded."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from align.data import layout, nat, sources
from align.data.examples import Example
from align.data.sources import Ledger
from align.data.tokenize import (
    ROLE_NAMES,
    PromptTooLong,
    TemplateRefuses,
    TokenizedResponse,
    TokenizedRow,
    encode_prompt,
    encode_row,
)
from align.errors import UserError, shorten
from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Objective

if TYPE_CHECKING:
    from align.recipe import Nat, Recipe, Source, Weights

# need -> the roles of which each row must have one
_REQUIRED = {
    "negatives": [{NEGATIVE}],
    "positives": [{POSITIVE}],
    "responses": [{POSITIVE, NEGATIVE}],
    "pairs": [{POSITIVE}, {NEGATIVE}],
}


@dataclass(frozen=True)
class HeldOutSet:
    """Held-out rows of one role, under the name they have in the table."""

    name: str
    role: str  # positive | negative
    rows: tuple[TokenizedRow, ...]


@dataclass(frozen=True)
class Rows:
    """What a run learns from and what it is measured on."""

    train: list[TokenizedRow]
    weights: list[float]  # how often a row is used in an epoch
    retain: list[TokenizedRow]  # rows of the retain term
    retain_weights: list[float]
    held_out: list[HeldOutSet]
    ledger: Ledger

    def summary(self) -> str:
        """One line for the screen: rows read, used, and dropped by reason."""
        dropped = "".join(f" · {reason}: {count}" for reason, count in sorted(self.ledger.dropped.items()))
        retain = f", retain {len(self.retain)}" if self.retain else ""
        return f"rows read {self.ledger.read}, used {self.ledger.used}{retain}{dropped}"


def load(recipe: Recipe, tokenizer, objective: Objective) -> Rows:
    """Reads what the recipe names. Raises UserError if nothing usable is left, or a row can never fit a device."""
    ledger, train, weights = Ledger(), [], []
    kept_out: list[tuple[str, Example]] = []
    for source in recipe.data.sources:
        examples = sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=ledger)
        if not source.path.startswith(sources.BUILTIN):  # builtin sets come with a held-out part of their own
            examples, aside = sources.split_holdout(examples, recipe.eval.holdout)
            kept_out += [(source.path, example) for example in aside]
            for example in aside:
                ledger.drop("held out", example.place)
        for example in _labelled(examples, recipe.data.nat, ledger):
            row = _encode(example, recipe, tokenizer, objective, ledger)
            if row is not None:
                train.append(row)
                weights.append(source.weight)
    train = _same_rewards(train, objective.roles(), ledger)
    ledger.used = len(train)
    if not train:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(ledger.dropped.items()))
        raise UserError("data.sources", f"no row can be used ({reasons or 'none were read'})", _way_out(objective))
    train = _weigh(train, recipe.weights)
    if recipe.retain.positives and not any(r.role == POSITIVE for row in train for r in row.responses):
        raise UserError("retain.positives", "no row has a positive", "give rows with good answers, or retain.sources")
    _check_fit(train, recipe, recipe.sampling.k if "samples" in objective.needs else 0)
    if "samples" in objective.needs:  # so that a template that cannot take the instruction is told now
        encode_prompt(tokenizer, train[0].example.prompt, recipe.sampling.instruction)
    retain, retain_weights = _retain_rows(recipe, tokenizer, ledger)
    _check_fit(retain, recipe, 0)
    held_out = _held_out_sets(recipe, kept_out, tokenizer, ledger)
    return Rows(train, weights, retain, retain_weights, held_out, ledger)


def _labelled(examples: list[Example], how: Nat | None, ledger: Ledger) -> Iterator[Example]:
    """The records as they are, or under NAT's prompts, without samples."""
    for example in examples:
        for _ in example.texts("sample") if how else ():
            ledger.drop("response unused: sample", example.place)
        try:
            yield from [example] if how is None else nat.under_labels(example, how)
        except ValueError as error:
            fix = "give rewards in the rows, or a grade that begins lower"
            raise UserError(example.place, f"data.nat.grades: {error}", fix) from None


def _same_rewards(train: list[TokenizedRow], roles: set[int], ledger: Ledger) -> list[TokenizedRow]:
    """The rows with rewards on all responses of the objective's `roles`, or on none.

    What an objective sees must not depend on the micro-batch.
    """
    lacking = [any(r.reward is None for r in row.responses if r.role in roles) for row in train]
    if not any(lacking) or all(r.reward is None for row in train for r in row.responses if r.role in roles):
        return train
    for row in itertools.compress(train, lacking):
        ledger.drop("rewards of the run unused: a response here has none", row.example.place)
    return [_without_rewards(row) for row in train]


def _without_rewards(row: TokenizedRow) -> TokenizedRow:
    return dataclasses.replace(row, responses=tuple(dataclasses.replace(r, reward=None) for r in row.responses))


def _weigh(train: list[TokenizedRow], weights: Weights) -> list[TokenizedRow]:
    """The rows with the recipe's weights on responses and judged steps.

    Raises UserError if steps are weighed and no step of any row is judged.
    """
    by_role = {POSITIVE: weights.positive, NEGATIVE: weights.negative, SAMPLE: 1.0}
    by_label = {1: {-1: weights.contradicting_steps}, -1: {1: weights.contradicting_steps}}  # role -> label -> weight
    weighs_steps = (weights.contradicting_steps, weights.unjudged_steps) != (1.0, 1.0)

    def weighed(response: TokenizedResponse) -> TokenizedResponse:
        tokens = None
        if weighs_steps and response.step_labels is not None:
            table = {0: weights.unjudged_steps, **by_label.get(response.role, {})}
            tokens = tuple(table.get(label, 1.0) for label in response.step_labels)
        return dataclasses.replace(response, weight=response.weight * by_role[response.role], token_weights=tokens)

    if weighs_steps and not any(response.step_labels for row in train for response in row.responses):
        fix = "give rows with judged 'steps', or leave contradicting_steps and unjudged_steps out"
        raise UserError("weights", "weighs steps, but no step of any row is judged", fix)
    return [dataclasses.replace(row, responses=tuple(map(weighed, row.responses))) for row in train]


def _retain_rows(recipe: Recipe, tokenizer, ledger: Ledger) -> tuple[list[TokenizedRow], list[float]]:
    """Rows of the retain term, with their positives only, and how often each is used."""
    rows, weights, aside = [], [], Ledger()
    for source in recipe.retain.sources:
        for example in sources.read(source.path, source.split, on_bad_rows=recipe.data.on_bad_rows, ledger=aside):
            row = _tokens(example, {POSITIVE}, recipe, tokenizer, aside)
            if row is not None and row.responses:
                rows.append(dataclasses.replace(row, retain=True))
                weights.append(source.weight)
            elif row is not None:
                aside.drop("row dropped: no positives", example.place)
    ledger.merge(aside, "retain: ")
    if recipe.retain.sources and not rows:
        raise UserError("retain.sources", "no row has a positive", "give rows with good answers, or leave retain out")
    return rows, weights


def _encode(example: Example, recipe: Recipe, tokenizer, objective: Objective, ledger: Ledger) -> TokenizedRow | None:
    """The row in tokens, or None (and a ledger entry) if the objective cannot use it."""
    roles = objective.roles() - ({SAMPLE} if "samples" in objective.needs else set())
    roles |= {POSITIVE} if recipe.retain.positives else set()
    row = _tokens(example, roles, recipe, tokenizer, ledger)
    if row is None:
        return None
    row = _complete(row, objective, recipe.reference.behavior is None, ledger)
    found = {response.role for response in row.responses}
    for need in objective.needs:
        for wanted in _REQUIRED.get(need, ()):
            if not found & wanted:
                names = " or ".join(f"{ROLE_NAMES[role]}s" for role in sorted(wanted, reverse=True))
                ledger.drop(f"row dropped: no {names}", example.place)
                return None
    return row


def _complete(row: TokenizedRow, objective: Objective, rows_tell_behavior: bool, ledger: Ledger) -> TokenizedRow:
    """The row without the responses that lack what the objective needs of each it reads."""
    kept, needs, roles = [], objective.needs, objective.roles()
    for response in row.responses:
        if response.role not in roles:  # a positive for the retain term
            kept.append(response)
        elif "rewards" in needs and response.reward is None:
            ledger.drop("response dropped: no reward", row.example.place)
        elif "behavior" in needs and rows_tell_behavior and response.behavior_logps is None:
            ledger.drop("response dropped: no behavior_logps", row.example.place)
        else:
            kept.append(response)
    return dataclasses.replace(row, responses=tuple(kept))


def _tokens(example: Example, roles: set[int], recipe: Recipe, tokenizer, ledger: Ledger) -> TokenizedRow | None:
    """The row in tokens with its responses of `roles`; None (and a ledger entry) if its prompt cannot be used."""
    try:
        return encode_row(tokenizer, example, roles=roles, max_length=recipe.data.max_length, ledger=ledger)
    except PromptTooLong:
        ledger.drop("row dropped: prompt too long", example.place)
    except TemplateRefuses:
        if recipe.data.on_bad_rows != "skip":
            raise
        ledger.drop("row dropped: the chat template refuses it", example.place)
    return None


def _way_out(objective: Objective) -> str:
    asked = [need for need in objective.needs if need in (*_REQUIRED, "rewards", "behavior")]
    return f"the objective needs {' and '.join(asked)}: give rows that have them"


def _check_fit(rows: list[TokenizedRow], recipe: Recipe, k: int) -> None:
    """A row is never split, so each must fit `train.tokens_per_device`, its `k` samples at full length included."""
    longest = (0,) * recipe.sampling.max_new_tokens
    for row in rows:
        room = recipe.data.max_length - len(row.prompt_ids)
        samples = (TokenizedResponse(longest[:room], SAMPLE),) * k
        need = layout.size([TokenizedRow(row.prompt_ids, (*row.responses, *samples), row.example)], recipe.data.layout)
        if need > recipe.train.tokens_per_device:
            what = f"a prompt with all its responses takes up to {need} tokens, train.tokens_per_device is "
            fix = "raise it, or lower data.max_length, sampling.k or sampling.max_new_tokens"
            raise UserError(row.example.place, f"{what}{recipe.train.tokens_per_device}", fix)


def _held_out_sets(recipe: Recipe, kept_out: list[tuple[str, Example]], tokenizer, ledger: Ledger) -> list[HeldOutSet]:
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
        rows = [
            _tokens(_as_used(example, recipe), {POSITIVE, NEGATIVE}, recipe, tokenizer, aside) for example in examples
        ]
        for role, number, label in (("negative", NEGATIVE, "negatives"), ("positive", POSITIVE, "good answers")):
            of_role = tuple(_of_role(row, number) for row in rows if row is not None)
            of_role = tuple(row for row in of_role if row.responses)
            if of_role:
                sets.append(HeldOutSet(f"{title}: {label}", role, of_role))
    ledger.merge(aside, "held-out: ")
    return sets


def _as_used(example: Example, recipe: Recipe) -> Example:
    """A record with the prompt as it is when the trained model is used."""
    if recipe.data.nat is None:
        return example
    return dataclasses.replace(example, prompt=nat.labelled(example.prompt, nat.inference_label(recipe.data.nat)))


def _of_role(row: TokenizedRow, role: int) -> TokenizedRow:
    responses = tuple(response for response in row.responses if response.role == role)
    return dataclasses.replace(row, responses=responses)


def _title(source: Source) -> str:
    return (
        f"{shorten(source.path, 28)} {source.split}"
        if source.path.startswith(sources.BUILTIN)
        else shorten(source.path, 28)
    )
