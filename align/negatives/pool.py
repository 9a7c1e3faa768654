"""The rows that negatives are mined from, by prompt: on disk, some 30 bytes a row in memory.

A prompt that several rows have is one prompt with all their responses. What other files say of the same prompts is kept
apart, as candidates. The pool is written anew by each run and is no output.
"""

from __future__ import annotations

import array
import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from align.data import sources
from align.data.examples import Example, RowError, parse_row, to_row
from align.data.ledger import SHOWN, Ledger
from align.errors import UserError, UserErrors, shorten
from align.recipe import Recipe

OWN, FILE = "own", "file"


class Candidate(NamedTuple):
    """A response that may become a negative, as a row has it, and where it is from."""

    response: dict
    origin: str  # own | file | neighbour KEY


class PromptRow(NamedTuple):
    """A prompt with its positives and candidates, in the words of rows."""

    key: str  # 16 hex digits: Example.key; of an empty prompt its place decides, too
    place: str
    head: dict  # the row without responses
    positives: list[dict]
    candidates: list[Candidate]
    right: Sequence[str] = ()  # what other files know to be right

    def example(self, responses: list[dict]) -> Example:
        """The prompt with some responses as a record."""
        return parse_row(self.head | {"responses": responses}, source=self.head["source"], place=self.place)

    @property
    def prompt_words(self) -> str:
        """The prompt as plain text, without who says what."""
        prompt = self.head["prompt"]
        if isinstance(prompt, str):
            return prompt
        return "\n".join(str(message.get("content") or "") for message in prompt)


def said(response: dict) -> str:
    """All that a response of a row says, as `Response.said`."""
    calls = response.get("tool_calls")
    return f"{response['text']}\n{json.dumps(calls, sort_keys=True, ensure_ascii=False)}" if calls else response["text"]


def plain(text: str) -> str:
    """The text as it is compared with others: case and white space do not count."""
    return " ".join(text.split()).casefold()


class Pool:
    """All prompts of a recipe, in the order of its sources. Raises UserErrors for broken rows."""

    def __init__(self, recipe: Recipe, path: Path, ledger: Ledger):
        self.path, self.digest = path, hashlib.sha256()
        self._offsets = array.array("Q")  # of each line
        keys, kinds = array.array("Q"), array.array("B")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(path, "wb") as out:
                for line, key, is_main in _lines(recipe, ledger):
                    self._offsets.append(out.tell())
                    keys.append(key)
                    kinds.append(is_main)
                    self.digest.update(line)
                    out.write(line)
        except BaseException:
            path.unlink()
            raise
        self._group(np.frombuffer(keys, np.uint64), np.frombuffer(kinds, np.uint8).astype(bool), ledger)
        self._file = open(path, "rb")

    def _group(self, keys: np.ndarray, is_main: np.ndarray, ledger: Ledger) -> None:
        """Finds which lines are of the same prompt, and the order of prompts."""
        order = np.argsort(keys, kind="stable")
        starts = np.flatnonzero(np.r_[True, keys[order][1:] != keys[order][:-1]]) if len(keys) else np.array([], int)
        ends = np.r_[starts[1:], len(keys)]
        first = np.minimum.reduceat(np.where(is_main[order], order, len(keys)), starts) if len(keys) else starts
        known = first < len(keys)
        for group in np.flatnonzero(~known):
            ledger.drop("prompt of mining.files that data.sources lack", f"line {int(order[starts[group]]) + 1}")
        by_place = np.argsort(first[known], kind="stable")
        self._order, self._starts, self._ends = order, starts[known][by_place], ends[known][by_place]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> PromptRow:
        """A prompt with its positives, and of its candidates those that its rows and the files have.

        Their order does not hang on that of the rows, so that ties are broken alike. What several rows say is one
        positive.
        """
        lines = []
        for line in np.sort(self._order[self._starts[index] : self._ends[index]]):
            self._file.seek(self._offsets[line])
            lines.append(json.loads(self._file.readline()))
        main = next(line for line in lines if line["main"])
        positives, candidates, right = {}, [], []
        for line in lines:
            for response in line["row"]["responses"]:
                if response["role"] != "positive":
                    candidates.append(Candidate(response, OWN if line["main"] else FILE))
                elif line["main"]:
                    positives.setdefault(said(response), response)
                else:
                    right.append(said(response))
        candidates.sort(key=_place_of)
        head = {name: value for name, value in main["row"].items() if name != "responses"}
        return PromptRow(main["key"], main["place"], head, list(positives.values()), candidates, right)

    def close(self) -> None:
        """Ends the use of the pool and deletes its file."""
        self._file.close()
        self.path.unlink(missing_ok=True)


def _place_of(candidate: Candidate) -> tuple:
    """Where a candidate stands among those of its prompt, whatever the order of rows."""
    return candidate.origin != OWN, said(candidate.response), json.dumps(candidate.response, sort_keys=True)


def _lines(recipe: Recipe, ledger: Ledger) -> Iterator[tuple[bytes, int, bool]]:
    """(line, key as a number, whether it is of data.sources) of all rows. Raises UserErrors for broken ones."""
    errors: list[UserError] = []
    named = [(source.path, source.split, True) for source in recipe.data.sources]
    named += [(path, "train", False) for path in recipe.mining.files]
    with tqdm(desc="read", unit="row") as bar:
        for path, split, is_main in named:
            for place, row in sources.rows(path, split, on_damage=_skipping(recipe, ledger)):
                bar.update(1)
                try:
                    example = sources.record(path, str(place), row, ledger)
                except RowError as error:
                    if recipe.data.on_bad_rows == "skip":
                        sources.drop_broken(place, error, ledger)
                    elif len(errors) < SHOWN:
                        errors.append(UserError(str(place), shorten(str(error), 200)))
                    continue
                key = _key(example)
                own = _decided(to_row(example), row, place, ledger)
                line = {"key": key, "place": str(place), "main": is_main, "row": own}
                yield (json.dumps(line, ensure_ascii=False) + "\n").encode(), int(key, 16), is_main
    if errors:
        raise UserErrors(errors, f"mend them, or {sources.SKIP}")


def _skipping(recipe: Recipe, ledger: Ledger) -> Callable | None:
    return functools.partial(sources.drop_damaged, ledger=ledger) if recipe.data.on_bad_rows == "skip" else None


def _key(example: Example) -> str:
    """The key of the prompt; rows without a prompt are no answers to the same question."""
    if example.prompt != "":
        return example.key
    return hashlib.sha256(f"{example.key} {example.place}".encode()).hexdigest()[:16]


def _decided(row: dict, given: dict, place: object, ledger: Ledger) -> dict:
    """The row without samples that a verifier left open (cut off, nothing to compare), which their `note` says."""
    if not isinstance(given.get("responses"), list):
        return row
    found = []
    for response, one in zip(row["responses"], given["responses"], strict=True):
        if response["role"] == "sample" and one.get("note"):
            ledger.drop("sample that was not decided: no candidate", place)
        else:
            found.append(response)
    return row | {"responses": found}
