"""A cascade of judges, the cheapest first: whoever is not sure passes the pair on to the next (RLHN, arXiv 2505.16967).

A judge scores positives and negative as whole answers. It decides where its scores differ enough: the label is wrong if
the negative has the better one. What each says is kept in a file as soon as it is said, and what it cost is counted.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from align.judges import Judge
from align.negatives.gaps import Case, judge_gaps
from align.negatives.pairs import Pair
from align.stage import Stage

_TOGETHER = 8  # pairs that are judged, and then kept, together


def ask(judges: Sequence[Judge], pairs: Sequence[Pair], sure: float, folder: Path) -> tuple[dict, dict]:
    """(id of a pair -> judge -> its gap, for all that were asked; judge -> what it decided and cost).

    A gap is the mean score of the positives minus that of the negative; None where the judge has no score.
    """
    said: dict[str, dict] = {pair.id: {} for pair in pairs}
    costs, left = {}, list(pairs)
    for judge in judges:
        stage = Stage(folder / f"judged-{judge.name}.jsonl", {"good_minus_bad": True} | judge.made_by)
        known, began = {row["id"]: row["gap"] for row in stage.rows}, time.monotonic()
        missing = [pair for pair in left if pair.id not in known]
        with tqdm(total=len(left), initial=len(left) - len(missing), desc=f"judge {judge.name}", unit="pair") as bar:
            for start in range(0, len(missing), _TOGETHER):
                part = missing[start : start + _TOGETHER]
                cases = [Case(pair.example, None, [pair.negative.said]) for pair in part]
                gaps = [own[0] for own in judge_gaps(judge, cases)]
                stage.add([{"id": pair.id, "gap": gap} for pair, gap in zip(part, gaps, strict=True)])
                known |= {pair.id: gap for pair, gap in zip(part, gaps, strict=True)}
                bar.update(len(part))
        for pair in left:
            said[pair.id][judge.name] = known[pair.id]
        asked = len(left)
        left = [pair for pair in left if verdict(said[pair.id], sure) is None]
        costs[judge.name] = {
            "pairs": asked, "asked_now": len(missing), "answers_now": sum(len(p.positives) + 1 for p in missing),
            "decided": asked - len(left), "seconds_now": round(time.monotonic() - began, 1), **_endpoint(judge),
        }  # fmt: skip
    return said, costs


def verdict(gaps: dict[str, float | None], sure: float) -> bool | None:
    """Whether the label is wrong by the first judge that is sure; None if none is."""
    found = [gap for gap in gaps.values() if gap is not None and abs(gap) >= sure]
    return found[0] < 0 if found else None


def _endpoint(judge: Judge) -> dict[str, int]:
    """What was paid for in this process."""
    endpoint = getattr(judge, "endpoint", None)
    return {} if endpoint is None else {"requests_now": endpoint.requests, "tokens_now": endpoint.tokens}
