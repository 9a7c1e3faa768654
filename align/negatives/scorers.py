"""What is told of each candidate: log-probs, sentence vectors, rewards, verdicts, CHES.

A scorer names the things it scores (a response behind its prompt, a text, a pair) by keys of their content, computes
what is not in the cache, and makes the scores of a prompt of what is. Models are loaded when something is missing.

Shapes: P positives and C candidates of a prompt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

import align
from align.errors import UserError
from align.judges import verifiers
from align.judges.options import Verifier
from align.negatives import scorer_models
from align.negatives.heads import Heads
from align.negatives.mining_options import IMPLICIT, OF_POLICY, OF_REFERENCE, RELEVANCE, REWARD, SIMILARITY
from align.negatives.pool import PromptRow, said
from align.negatives.score_cache import key
from align.negatives.strategies import ches
from align.recipe import Recipe

Values = Mapping[bytes, bytes]
VERDICT, CHES = "verdict", "ches"
RIGHT, WRONG, UNDECIDED = 1.0, 0.0, -1.0  # verdicts


class Item(NamedTuple):
    """Something to score: a response of a prompt; `other` is what it is scored against."""

    row: PromptRow
    response: dict
    other: dict | None = None


class Told(NamedTuple):
    """The scores of a prompt; nan where there is none."""

    positives: np.ndarray  # (P,)
    candidates: np.ndarray  # (C,)


class Scorer(Protocol):
    """Scores of one kind. All of it may raise UserError."""

    title: str  # for the progress bar
    identity: str  # what its values depend on beside the texts

    def items(self, row: PromptRow) -> Iterator[tuple[bytes, Item]]:
        """What the scores of a prompt are made of, by key."""

    def compute(self, items: Sequence[Item]) -> list[bytes | None]:
        """The values of some items; None where there is none, which is never kept."""

    def told(self, row: PromptRow, keys: Sequence[bytes], values: Values) -> dict[str, Told]:
        """The scores of a prompt by name; `keys` are those of `items`, in their order."""


def load(recipe: Recipe) -> list[Scorer]:
    """The scorers that a recipe asks for. Raises UserError for what is not installed or has another head."""
    mining, found = recipe.mining, []
    heads = Heads(recipe) if mining.asks_policy or mining.asks_reference else None
    if {*OF_POLICY, IMPLICIT} & set(mining.scores):
        found.append(LogProbs(heads, "policy", OF_POLICY))
    if mining.asks_reference:
        found.append(LogProbs(heads, "reference", OF_REFERENCE))
    if {SIMILARITY, RELEVANCE} & set(mining.scores) or mining.asks_vectors:
        found.append(Vectors(mining.encoder))
    if REWARD in mining.scores:
        found.append(Rewards(mining.reward_model))
    if mining.verifier is not None:
        found.append(Verdicts(mining.verifier))
    if mining.ches_keep is not None:
        found.append(Ches(heads))
    return found


def told(
    scorers: Sequence[Scorer], row: PromptRow, keys: Sequence[list[bytes]], values: Values, names: Sequence[str]
) -> dict[str, Told]:
    """All scores of a prompt: those that are asked for, and verdicts and CHES where there are any.

    `keys` are those of each scorer.
    """
    found: dict[str, Told] = {}
    for scorer, own in zip(scorers, keys, strict=True):
        found |= scorer.told(row, own, values)
    if IMPLICIT in names:
        policy, reference = found[OF_POLICY[0]], found[OF_REFERENCE[0]]
        found[IMPLICIT] = Told(*(one - other for one, other in zip(policy, reference, strict=True)))
    return {name: found[name] for name in found if name in (*names, VERDICT, CHES)}


def _responses(row: PromptRow) -> Iterator[dict]:
    yield from row.positives
    yield from (candidate.response for candidate in row.candidates)


def _numbers(keys: Sequence[bytes], values: Values, width: int = 1) -> np.ndarray:
    """(keys, width) float64 the kept numbers; nan where there are none."""
    nothing = np.full(width, np.nan, "<f8").tobytes()
    return np.frombuffer(b"".join([values.get(one, nothing) for one in keys]), "<f8").reshape(-1, width)


def _told(row: PromptRow, numbers: np.ndarray) -> Told:
    """Numbers (P + C,) of positives and candidates, in that order."""
    return Told(numbers[: len(row.positives)], numbers[len(row.positives) :])


def _packed(*numbers: float) -> bytes | None:
    """Numbers as a value; None if one of them is none: what is not finite is never kept."""
    return np.array(numbers, "<f8").tobytes() if np.isfinite(numbers).all() else None


class LogProbs:
    """Log-probs of responses, end of turn included, in nats: their sum, and a token."""

    def __init__(self, heads: Heads, who: str, names: tuple[str, str]):
        self.heads, self.who, self.names = heads, who, names
        self.title, self.identity = f"log-probs of the {who}", heads.identity(who)

    def items(self, row: PromptRow) -> Iterator[tuple[bytes, Item]]:
        for response in _responses(row):
            yield key("logp", self.identity, row.key, said(response)), Item(row, response)

    def compute(self, items: Sequence[Item]) -> list[bytes | None]:
        logps = self.heads.logps(self.who, items)
        return [None if own is None else _packed(own.astype(np.float64).sum(), len(own)) for own in logps]

    def told(self, row: PromptRow, keys: Sequence[bytes], values: Values) -> dict[str, Told]:
        sums, tokens = _numbers(keys, values, 2).T
        return dict(zip(self.names, (_told(row, sums), _told(row, sums / tokens)), strict=True))


class Vectors:
    """Sentence vectors, kept as float16 and read as unit vectors."""

    def __init__(self, path: str | None):
        self.folder, self.title, self._encoder = scorer_models.encoder_folder(path), "sentence vectors", None
        self.identity = scorer_models.files_sha256(self.folder)

    def items(self, row: PromptRow) -> Iterator[tuple[bytes, Item]]:
        for response in [*_responses(row), {"text": row.prompt_words}]:
            yield self.key(said(response)), Item(row, response)

    def key(self, text: str) -> bytes:
        return key("vector", self.identity, text)

    def compute(self, items: Sequence[Item]) -> list[bytes | None]:
        vectors = self.encode([said(item.response) for item in items])
        return [one.astype("<f2").tobytes() if np.isfinite(one).all() else None for one in vectors]

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """(N, D) unit vectors of some texts."""
        if self._encoder is None:
            from align.negatives.encoder import Encoder

            self._encoder = Encoder(self.folder)
        return self._encoder.encode(texts)

    @staticmethod
    def of(keys: Sequence[bytes], values: Values) -> np.ndarray:
        """(N, D) float32 the kept vectors of some keys; nan for one that is not there."""
        size = next((len(values[one]) // 2 for one in keys if one in values), 1)
        nothing = np.full(size, np.nan, "<f2").tobytes()
        flat = np.frombuffer(b"".join([values.get(one, nothing) for one in keys]), "<f2")
        vectors = flat.reshape(len(keys), size).astype(np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def told(self, row: PromptRow, keys: Sequence[bytes], values: Values) -> dict[str, Told]:
        vectors = self.of(keys, values)  # (P + C + 1, D), the last one of the prompt
        vectors, prompt, count = vectors[:-1], vectors[-1], len(row.positives)
        near = vectors @ vectors[:count].T if count else np.full((len(vectors), 1), np.nan)
        return {
            RELEVANCE: _told(row, (vectors @ prompt).astype(np.float64)),
            SIMILARITY: _told(row, near.max(1).astype(np.float64)),
        }


class Rewards:
    """Rewards of a reward model, as it gives them."""

    def __init__(self, path: str):
        self.path, self.title, self._model = path, "rewards", None
        self.identity = scorer_models.files_sha256(scorer_models.folder_of(path, "mining.reward_model"))

    def items(self, row: PromptRow) -> Iterator[tuple[bytes, Item]]:
        for response in _responses(row):
            yield key("reward", self.identity, row.key, said(response)), Item(row, response)

    def compute(self, items: Sequence[Item]) -> list[bytes | None]:
        if self._model is None:
            from align.negatives.rewards import RewardModel

            self._model = RewardModel(self.path)
        return [_packed(value) for value in self._model.score(items)]

    def told(self, row: PromptRow, keys: Sequence[bytes], values: Values) -> dict[str, Told]:
        return {REWARD: _told(row, _numbers(keys, values)[:, 0])}


class Verdicts:
    """Whether a candidate is right after all, by a verifier."""

    def __init__(self, options: Verifier):
        self.title = f"verifier {options.name}"
        try:
            self.verify, described = verifiers.load(options), verifiers.described(options)
        except UserError as error:  # it is named elsewhere for roll-outs
            raise UserError("mining.verifier", error.what, error.fix) from None
        self.identity = json.dumps([align.__version__, described], sort_keys=True)

    def items(self, row: PromptRow) -> Iterator[tuple[bytes, Item]]:
        right = json.dumps([said(one) for one in row.positives])
        for candidate in row.candidates:
            response = candidate.response
            yield key(VERDICT, self.identity, row.key, right, said(response)), Item(row, response)

    def compute(self, items: Sequence[Item]) -> list[bytes | None]:
        found = []
        for item in items:
            if not item.row.positives:
                found.append(_packed(UNDECIDED))
                continue
            is_right = self.verify(item.row.example(item.row.positives), item.response["text"]).is_right
            found.append(_packed({True: RIGHT, False: WRONG, None: UNDECIDED}[is_right]))
        return found

    def told(self, row: PromptRow, keys: Sequence[bytes], values: Values) -> dict[str, Told]:
        return {VERDICT: Told(np.full(len(row.positives), RIGHT), _numbers(keys, values)[:, 0])}


class Ches:
    """How far a push on a candidate takes a positive along; of several positives the one it takes most."""

    def __init__(self, heads: Heads):
        self.heads, self.title, self.identity = heads, "CHES", heads.identity("policy")

    def items(self, row: PromptRow) -> Iterator[tuple[bytes, Item]]:
        for candidate in row.candidates:
            for positive in row.positives:
                one, other = said(positive), said(candidate.response)
                yield key(CHES, self.identity, row.key, one, other), Item(row, candidate.response, positive)

    def compute(self, items: Sequence[Item]) -> list[bytes | None]:
        singles = {(item.row.key, said(one)): Item(item.row, one) for item in items
                   for one in (item.response, item.other)}  # fmt: skip
        means = dict(zip(singles, self.heads.mean_states("policy", list(singles.values())), strict=True))
        found = []
        for item in items:
            positive, candidate = (means[item.row.key, said(one)] for one in (item.other, item.response))
            found.append(None if positive is None or candidate is None else _packed(ches(positive, candidate)))
        return found

    def told(self, row: PromptRow, keys: Sequence[bytes], values: Values) -> dict[str, Told]:
        table = _numbers(keys, values).reshape(len(row.candidates), len(row.positives))
        worst = table.max(1) if row.positives else np.full(len(row.candidates), np.nan)
        return {CHES: Told(np.full(len(row.positives), np.nan), worst)}
