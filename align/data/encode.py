"""From records to the tokenised rows that a recipe's objective can use; what cannot be used is counted."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from align.data import layout, nat
from align.data.examples import Example
from align.data.ledger import Ledger
from align.data.templates import TemplateRefuses
from align.data.tokenize import ROLE_NAMES, PromptTooLong, TokenizedResponse, TokenizedRow, encode_prompt, encode_row
from align.errors import UserError
from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Objective

if TYPE_CHECKING:
    from align.recipe import Recipe

# need -> the roles of which each row must have one
REQUIRED = {
    "negatives": [{NEGATIVE}],
    "positives": [{POSITIVE}],
    "responses": [{POSITIVE, NEGATIVE}],
    "pairs": [{POSITIVE}, {NEGATIVE}],
}


class Encoder:
    """Encodes the records of a recipe, one at a time."""

    def __init__(self, recipe: Recipe, tokenizer, objective: Objective):
        self.recipe, self.tokenizer, self.objective = recipe, tokenizer, objective
        drawn = {SAMPLE} if "samples" in objective.needs else set()
        self.roles = (objective.roles() - drawn) | ({POSITIVE} if recipe.retain.positives else set())
        self.samples = recipe.sampling.k if drawn else 0
        self.weighs_steps = (recipe.weights.contradicting_steps, recipe.weights.unjudged_steps) != (1.0, 1.0)

    def training_rows(self, example: Example, ledger: Ledger) -> Iterator[TokenizedRow]:
        """What a record gives to learn from: one row or none; under NAT one for each label.

        Raises UserError for a row that can never fit a device, and for a reward without a grade.
        """
        for labelled in self._labelled(example, ledger):
            row = self.tokens(labelled, self.roles, ledger)
            if row is not None and self._is_usable(row := self._complete(row, ledger), ledger):
                row = self._weighed(row)
                self._check_fit(row, self.samples)
                yield row

    def retain_row(self, example: Example, ledger: Ledger) -> TokenizedRow | None:
        """A row of the retain term, with its positives only."""
        row = self.tokens(example, {POSITIVE}, ledger)
        if row is None:
            return None
        if not row.responses:
            ledger.drop("row dropped: no positives", example.place)
            return None
        self._check_fit(row, 0)
        return dataclasses.replace(row, retain=True)

    def held_out_row(self, example: Example, ledger: Ledger) -> TokenizedRow | None:
        """A row to measure on, with the prompt as it is when the trained model is used."""
        how = self.recipe.data.nat
        if how is not None:
            example = dataclasses.replace(example, prompt=nat.labelled(example.prompt, nat.inference_label(how)))
        return self.tokens(example, {POSITIVE, NEGATIVE}, ledger)

    def tokens(self, example: Example, roles: set[int], ledger: Ledger) -> TokenizedRow | None:
        """The row in tokens with its responses of `roles`; None (and a ledger entry) if its prompt cannot be used."""
        limit = self.recipe.data.max_length
        try:
            return encode_row(self.tokenizer, example, roles=roles, max_length=limit, ledger=ledger)
        except PromptTooLong:
            ledger.drop("row dropped: prompt too long", example.place)
        except TemplateRefuses:
            if self.recipe.data.on_bad_rows != "skip":
                raise
            ledger.drop("row dropped: the chat template refuses it", example.place)
        return None

    def check_instruction(self, row: TokenizedRow) -> None:
        """Raises UserError if samples are to be drawn under an instruction that the chat template cannot take."""
        if self.samples:
            encode_prompt(self.tokenizer, row.example.prompt, self.recipe.sampling.instruction)

    def way_out(self) -> str:
        """What a user whose rows cannot be used is told."""
        asked = [need for need in self.objective.needs if need in (*REQUIRED, "rewards", "behavior")]
        return f"the objective needs {' and '.join(asked)}: give rows that have them"

    def _labelled(self, example: Example, ledger: Ledger) -> list[Example]:
        """The record as it is, or under NAT's prompts, without samples."""
        how = self.recipe.data.nat
        if how is None:
            return [example]
        for _ in example.texts("sample"):
            ledger.drop("response unused: sample", example.place)
        try:
            return nat.under_labels(example, how)
        except ValueError as error:
            fix = "give rewards in the rows, or a grade that begins lower"
            raise UserError(str(example.place), f"data.nat.grades: {error}", fix) from None

    def _complete(self, row: TokenizedRow, ledger: Ledger) -> TokenizedRow:
        """The row without the responses that lack what the objective needs of each it reads."""
        kept, needs, roles = [], self.objective.needs, self.objective.roles()
        rows_tell_behavior = self.recipe.reference.behavior is None
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

    def _is_usable(self, row: TokenizedRow, ledger: Ledger) -> bool:
        found = {response.role for response in row.responses}
        for need in self.objective.needs:
            for wanted in REQUIRED.get(need, ()):
                if not found & wanted:
                    read = wanted & self.objective.roles()
                    names = " or ".join(f"{ROLE_NAMES[role]}s" for role in sorted(read, reverse=True))
                    ledger.drop(f"row dropped: no {names}", row.example.place)
                    return False
        return True

    def _weighed(self, row: TokenizedRow) -> TokenizedRow:
        """The row with the recipe's weights on responses and judged steps."""
        weights = self.recipe.weights
        by_role = {POSITIVE: weights.positive, NEGATIVE: weights.negative, SAMPLE: 1.0}
        by_label = {1: {-1: weights.contradicting_steps}, -1: {1: weights.contradicting_steps}}  # role -> label

        def weighed(response: TokenizedResponse) -> TokenizedResponse:
            tokens = None
            if self.weighs_steps and response.step_labels is not None:
                table = {0: weights.unjudged_steps, **by_label.get(response.role, {})}
                tokens = tuple(table.get(label, 1.0) for label in response.step_labels)
            weight = response.weight * by_role[response.role]
            return dataclasses.replace(response, weight=weight, token_weights=tokens)

        return dataclasses.replace(row, responses=tuple(map(weighed, row.responses)))

    def _check_fit(self, row: TokenizedRow, k: int) -> None:
        """A row is never split, so it must fit a device, `k` samples at full length included."""
        recipe = self.recipe
        room = recipe.data.max_length - len(row.prompt_ids)
        samples = (TokenizedResponse((0,) * min(recipe.sampling.max_new_tokens, room), SAMPLE),) * k
        need = layout.size([TokenizedRow(row.prompt_ids, (*row.responses, *samples), row.example)], recipe.data.layout)
        asked, most = recipe.train.recompute, recipe.train.tokens_per_device
        times = layout.ROOM[layout.ALL if asked == layout.AUTO else asked]
        if need > times * most:
            what = f"a prompt with all its responses takes up to {need} tokens, train.tokens_per_device is {most}"
            what += f", times {times:g} under train.recompute: {asked}" if times > 1 else ""
            fix = "raise it, or lower data.max_length, sampling.k or sampling.max_new_tokens"
            raise UserError(str(row.example.place), what, fix)
