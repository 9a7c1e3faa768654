"""`align mine`: the negatives of each prompt are chosen among candidates, by scores; records in, records out.

    OUTPUT/mined.jsonl    each prompt with its positives and the negatives that were chosen; each says how ("made")
    OUTPUT/mined.json     how that was made, and the report: the scores of positives, chosen and refused ones

First every candidate is scored, a batch of prompts at a time; what is scored is kept in the cache folder at once, so a
killed run goes on, and another strategy asks no model. Then all prompts are gone through again and the output appears
as a whole. Rows are read one by one from disk: memory grows by some bytes a prompt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

import align
from align.data.ledger import Ledger
from align.errors import UserError
from align.negatives import scorers as scoring
from align.negatives import strategies
from align.negatives.mining_report import CHOSEN, POSITIVE, REFUSED, Report, Reservoir
from align.negatives.neighbours import Neighbours
from align.negatives.pool import OWN, Candidate, Pool, PromptRow, plain, said
from align.negatives.score_cache import ScoreCache
from align.negatives.scorers import CHES, RIGHT, VERDICT, WRONG, Scorer, Told, Vectors
from align.recipe import Recipe

_TOGETHER = 64  # prompts whose candidates are scored, and then kept, together
NOT_PICKED = "not picked by the strategy"


class Row(NamedTuple):
    """A prompt with its scores."""

    row: PromptRow
    scores: dict[str, Told]
    vectors: np.ndarray | None  # (C, D), for strategies that look at the texts


class Mine:
    """The rows of a recipe and what scores them. Raises UserError for what is missing."""

    def __init__(self, recipe: Recipe, folder: Path, cache: ScoreCache, ledger: Ledger):
        self.recipe, self.mining, self.folder, self.cache, self.ledger = recipe, recipe.mining, folder, cache, ledger
        self.strategy = strategies.build(self.mining.strategy)
        self.scorers = scoring.load(recipe)
        self.encoder = next((one for one in self.scorers if isinstance(one, Vectors)), None)
        if self.encoder is None and self.mining.neighbours:
            self.encoder = Vectors(self.mining.encoder)
        self.pool = Pool(recipe, folder / ".rows.jsonl", ledger)
        self.neighbours: Neighbours | None = None

    def made_by(self) -> dict:
        """What the output depends on."""
        return {
            "align": align.__version__, "rows_sha256": self.pool.digest.hexdigest(), "seed": self.recipe.train.seed,
            "holdout": self.recipe.eval.holdout, "mining": dataclasses.asdict(self.mining),
            "scored_by": {scorer.title: scorer.identity for scorer in self.scorers},
            "neighbours_by": self.encoder.identity if self.mining.neighbours else None,
        }  # fmt: skip

    def close(self) -> None:
        """Deletes the files that are no output."""
        self.pool.close()
        if self.neighbours is not None:
            self.neighbours.close()

    def find_neighbours(self) -> None:
        """Looks for the most similar prompts, if the recipe takes candidates from them."""
        if not self.mining.neighbours:
            return
        encoder, path = self.encoder, self.folder / ".prompts.f16"
        try:
            with open(path, "wb") as out:
                for rows in self._batches("vectors of prompts", with_neighbours=False):
                    keys = [encoder.key(row.prompt_words) for row in rows]
                    prompts = [scoring.Item(row, {"text": row.prompt_words}) for row in rows]
                    self._fill(encoder, dict(zip(keys, prompts, strict=True)))
                    vectors = np.nan_to_num(encoder.of(keys, self.cache.get(keys)))  # 0: like nothing
                    out.write(vectors.astype("<f2").tobytes())
            vectors = np.memmap(path, "<f2", mode="r").reshape(len(self.pool), -1)
            where, count = self.folder / ".neighbours.i32", self.mining.neighbours
            self.neighbours = Neighbours(self.pool, vectors, self.recipe.eval.holdout, where, count)
        finally:
            path.unlink(missing_ok=True)

    def score(self) -> None:
        """Sees to it that all scores are in the cache: one scorer, and its model, at a time."""
        for scorer in self.scorers:
            unscored = 0
            for rows in self._batches(scorer.title):
                items = {key: item for row in rows if row.candidates for key, item in scorer.items(row)}
                unscored += self._fill(scorer, items)
            if unscored:
                print(f"{scorer.title}: {unscored:,} have no score: too long to be read whole, or not a number")

    def _fill(self, scorer: Scorer, items: dict[bytes, scoring.Item]) -> int:
        """Computes and keeps what the cache lacks of some items; how many have no value all the same."""
        known = self.cache.known(list(items))
        missing = {key: item for key, item in items.items() if key not in known}
        if not missing:
            return 0
        values = zip(missing, scorer.compute(list(missing.values())), strict=True)
        fresh = {key: value for key, value in values if value is not None}
        self.cache.put(fresh.items())
        return len(missing) - len(fresh)

    def choose(self, report: Report) -> Iterator[dict]:
        """The rows to learn from. What is told of scores goes into `report`; prompts without negatives are counted.

        Raises UserError, at the end, if nothing was chosen or there was nothing to choose by.
        """
        limit = self._ches_limit()
        for one in self._rows("choose"):
            if not one.row.candidates:
                self.ledger.drop("prompt without negatives: no candidate", one.row.place)
            elif found := self._chosen(one, limit, report):
                yield one.row.head | {"responses": [*one.row.positives, *found], "key": one.row.key}
        if not report.chosen:
            reasons = ", ".join(f"{reason}: {count:,}" for reason, count in report.refused.most_common())
            rows = ", ".join(f"{reason}: {count:,}" for reason, count in self.ledger.dropped.most_common())
            what = f"no candidate is left of {len(self.pool):,} prompts ({reasons or rows})"
            raise UserError("mining", what, "take other candidates, another strategy or other bounds")
        if 0 < report.even == report.compared and self.mining.strategy["name"] not in ("random", "clusters"):
            what = f"by {self.mining.scores[0]} all candidates of each prompt are equal: there is nothing to choose by"
            raise UserError("mining.scores", what, "take another score first, or the strategy random")

    def _chosen(self, one: Row, limit: float | None, report: Report) -> list[dict]:
        """The chosen negatives of a prompt as responses, and an account of all its candidates."""
        row, name = one.row, self.mining.scores[0]
        reasons = self._refusals(one, limit)
        places = np.array([index for index, reason in enumerate(reasons) if reason is None], int)
        positives = one.scores[name].positives
        positive = float(positives.min()) if len(positives) and np.isfinite(positives).all() else None
        problem = _unusable(self.strategy, positive, places)
        picked: list[int] = []
        if problem is None:
            vectors = None if one.vectors is None else one.vectors[places]
            seen = strategies.Candidates(one.scores[name].candidates[places], positive, vectors)
            picked = [int(places[index]) for index in self.strategy.pick(seen, self.mining.keep, self._rng(row))]
            for place, is_close in zip(places, strategies.too_close(self.strategy, seen), strict=True):
                reasons[place] = "too close to the positive" if is_close else NOT_PICKED
        for place in places if problem is not None else ():
            reasons[place] = problem
        if not picked:
            self.ledger.drop(f"prompt without negatives: {problem or 'no candidate below the positive'}", row.place)
        groups = {POSITIVE: None, CHOSEN: picked, REFUSED: [n for n in range(len(reasons)) if n not in picked]}
        report.add(one.scores, groups, positive, one.scores[name].candidates[places], name)
        report.refused.update(reasons[index] for index in groups[REFUSED])
        return [self._response(row.candidates[index], one, index) for index in picked]

    def _refusals(self, one: Row, limit: float | None) -> list[str | None]:
        """Why each candidate cannot become a negative, whatever the strategy; None where it can."""
        right = {plain(text) for text in (*map(said, one.row.positives), *one.row.right)}
        can_rank = np.isfinite(one.scores[self.mining.scores[0]].candidates)
        if one.vectors is not None:
            can_rank &= np.isfinite(one.vectors).all(1)
        has_score = can_rank.tolist()
        verdicts = one.scores[VERDICT].candidates.tolist() if VERDICT in one.scores else None
        ches = one.scores[CHES].candidates.tolist() if CHES in one.scores else None
        seen, reasons = set(), []
        for index, candidate in enumerate(one.row.candidates):
            text, reason = plain(said(candidate.response)), None
            if text in right:
                reason = "the same as a positive"
            elif text in seen:
                reason = "the same as another candidate"
            elif not has_score[index]:
                reason = "no score"
            elif verdicts and verdicts[index] != WRONG:
                reason = "right by the verifier" if verdicts[index] == RIGHT else "not decided by the verifier"
            elif ches and not ches[index] <= limit:
                reason = "no CHES" if math.isnan(ches[index]) else "pulls the positive down (CHES)"
            seen.add(text)
            reasons.append(reason)
        return reasons

    def _response(self, candidate: Candidate, one: Row, index: int) -> dict:
        """A chosen candidate as a response that says how it was chosen."""
        scores = {name: float(told.candidates[index]) for name, told in one.scores.items() if name != VERDICT}
        made = {
            "by": "mine", "strategy": self.mining.strategy["name"], "from": candidate.origin,
            "scores": {name: round(value, 6) for name, value in scores.items() if np.isfinite(value)},
        }  # fmt: skip
        if "made" in candidate.response:
            made["before"] = candidate.response["made"]
        return candidate.response | {"role": "negative", "made": made}

    def _ches_limit(self) -> float | None:
        """The highest CHES of those that pull their positive down least; of a sample where there are many."""
        if self.mining.ches_keep is None:
            return None
        found = Reservoir(self.recipe.train.seed)
        for one in self._rows("CHES"):
            if one.row.candidates:
                found.add(one.scores[CHES].candidates)
        return strategies.lowest_share(found.values, self.mining.ches_keep) if len(found.values) else np.inf

    def _rows(self, title: str) -> Iterator[Row]:
        """All prompts with their scores; those without candidates have none."""
        for rows in self._batches(title):
            keys = [
                [[key for key, _ in scorer.items(row)] for scorer in self.scorers] for row in rows if row.candidates
            ]
            values, of = self.cache.get(list({key for row in keys for own in row for key in own})), iter(keys)
            for row in rows:
                yield self._scored(row, next(of), values) if row.candidates else Row(row, {}, None)

    def _scored(self, row: PromptRow, keys: list[list[bytes]], values: scoring.Values) -> Row:
        """A prompt with its scores; `keys` are those of each scorer."""
        vectors, told = None, scoring.told(self.scorers, row, keys, values, self.mining.scores)
        if self.mining.asks_vectors:
            (own,) = (key for key, scorer in zip(keys, self.scorers, strict=True) if isinstance(scorer, Vectors))
            vectors = Vectors.of(own[len(row.positives) : -1], values)  # the last one is the prompt's
        return Row(row, told, vectors)

    def _batches(self, title: str, *, with_neighbours: bool = True) -> Iterator[list[PromptRow]]:
        """All prompts with their candidates, some at a time."""
        with tqdm(total=len(self.pool), desc=title, unit="prompt") as bar:
            for start in range(0, len(self.pool), _TOGETHER):
                numbers = range(start, min(start + _TOGETHER, len(self.pool)))
                yield [self._row(number) if with_neighbours else self.pool[number] for number in numbers]
                bar.update(len(numbers))

    def _row(self, number: int) -> PromptRow:
        row = self.pool[number]
        own = [one for one in row.candidates if self.mining.own or one.origin != OWN]
        return row._replace(candidates=own + (self.neighbours.candidates(number, row) if self.neighbours else []))

    def _rng(self, row: PromptRow) -> np.random.Generator:
        """Random numbers of a prompt: the same ones whatever was gone through before."""
        digest = hashlib.sha256(f"mine/{self.recipe.train.seed}/{row.key}".encode()).digest()
        return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _unusable(strategy: strategies.Strategy, positive: float | None, places: Sequence[int]) -> str | None:
    """Why nothing can be chosen for a prompt, if so."""
    if not len(places):
        return "no candidate left"
    if "positive" in strategy.needs and positive is None:
        return "no positive with a score to compare with"
    if "above 0" in strategy.needs and positive <= 0:
        return "the positive's score is not above 0"
    return None
