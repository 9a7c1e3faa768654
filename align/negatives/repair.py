"""Finds negatives that are right, and pairs labelled the wrong way round, and mends the rows.

Suspects are the pairs (each negative against its row's positives) that cross-fitted margins call wrong
(`crossfit.py`), or all; a cascade of judges (`cascade.py`) confirms or clears them, and what it leaves open is only
written down. Of those that remain, `repair.action` says what becomes of them:

* `drop`: the negative goes; of a row of one positive and one negative both, since neither label can be trusted;
* `flip`: such a row's labels are exchanged; of a row with more answers the negative becomes a positive;
* `relabel`: the negative becomes a positive, the others stay (RLHN's best choice; a pair has no negative then);
* `reweight`: weights are multiplied by the share of copies that trust the label, of all pairs that any copy doubts.

People have the last word, in the audit file (`audit.py`). A model that prefers bad answers for reasons of its own calls
right labels wrong, and where margins agree with few of the labels (`labels_agreed`), most of what they call wrong is
not. Look before you drop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from align.data.examples import Example, to_row
from align.data.flips import LEAST_PAIRS
from align.data.messages import as_dict
from align.errors import UserError
from align.negatives import cascade, crossfit
from align.negatives.options import Repair
from align.negatives.pairs import Pair

KEEP, OPEN = "keep", "open"


@dataclass
class Finding:
    """What is known of a pair."""

    pair: Pair
    evidence: dict = field(default_factory=dict)
    doubt: float = 0.0  # share of copies that call the label wrong
    is_suspect: bool = False
    is_wrong: bool | None = None  # None: nothing has decided


def by_margins(how: Repair, pairs: Sequence[Pair], features: Sequence[np.ndarray], seed: int) -> list[Finding]:
    """The pairs with their cross-fitted margins. `features`: (K, F) of the responses of each pair's row, K of them.

    Raises UserError where margins say nothing.
    """
    if len(pairs) < LEAST_PAIRS:
        what = f"{len(pairs)} pairs are too few for margins, which take {LEAST_PAIRS}"
        raise UserError("data.sources", what, "give more rows, or repair: {suspects: all, cascade: [...]}")
    differences = np.stack([_difference(pair, own) for pair, own in zip(pairs, features, strict=True)])
    prompts = [pair.prompt for pair in pairs]
    try:
        found = crossfit.margins(differences, prompts, folds=how.folds, copies=how.copies, seed=seed)
    except ValueError as error:
        fix = "give more rows, a better model, or judges: repair: {suspects: all, cascade: [...]}"
        raise UserError("data.sources", str(error), fix) from None
    findings = []
    for pair, margin, doubt in zip(pairs, found.margins.tolist(), found.doubts.tolist(), strict=True):
        evidence = {"margin": round(margin, 4), "copies_in_doubt": round(doubt, 4)}
        is_suspect = doubt >= how.agree
        findings.append(Finding(pair, evidence, doubt, is_suspect, is_suspect or None))
    return findings


def confirm(findings: Sequence[Finding], said: dict[str, dict], sure: float) -> None:
    """Notes what the cascade says of the suspects."""
    for one in findings:
        if one.pair.id in said:
            one.evidence["judges"] = said[one.pair.id]
            one.is_wrong = cascade.verdict(said[one.pair.id], sure)


def proposal(how: Repair, finding: Finding) -> str:
    """What is to become of a pair: an action, `keep`, or `open` where nothing has decided about a suspect."""
    if how.action == "reweight" and finding.doubt > 0 and (finding.is_wrong or not finding.is_suspect):
        return how.action
    if finding.is_wrong and how.action != "reweight":
        return how.action
    return OPEN if finding.is_suspect and finding.is_wrong is None else KEEP


def audit_line(finding: Finding, proposed: str) -> dict:
    """A suspect for people to look at."""
    pair, prompt = finding.pair, finding.pair.example.prompt
    return {
        "id": pair.id, "place": str(pair.example.place),
        "prompt": prompt if isinstance(prompt, str) else [as_dict(message) for message in prompt],
        "positives": pair.positives, "negative": pair.negative.said,
        "evidence": finding.evidence, "proposed": proposed, "decision": None,
    }  # fmt: skip


def mended(example: Example, doing: dict[int, tuple[str, Finding]]) -> dict | None:
    """The row with what is done to its negatives, index -> (action, finding); None if nothing of it is left."""
    row = to_row(example)
    responses, gone = row["responses"], set()
    for index, (action, finding) in doing.items():
        touched = [index]
        if finding.pair.is_alone and action != "relabel":
            touched = [n for n, one in enumerate(example.responses) if one.role != "sample"]
        if action == "drop":
            gone |= set(touched)
            continue
        for place in touched:
            _change(responses[place], example, place, action, finding)
    left = [one for index, one in enumerate(responses) if index not in gone]
    return row | {"responses": left} if left else None


def tally(findings: Sequence[Finding], actions: dict[str, str]) -> dict[str, float]:
    """How many pairs there are, were suspected, and became what; with how many labels margins agree."""
    done = Counter(action for action in actions.values() if action != KEEP)
    suspects, margins = sum(one.is_suspect for one in findings), [one.evidence.get("margin") for one in findings]
    agreed = {} if None in margins else {"labels_agreed": round(sum(one > 0 for one in margins) / len(margins), 3)}
    return {"pairs": len(findings), **agreed, "suspects": suspects, **dict(sorted(done.items()))}


def _change(row: dict, example: Example, place: int, action: str, finding: Finding) -> None:
    """Gives a response another role or weight, and says so in it.

    With its role go its reward, which becomes the lowest of the role that it takes, and its judged steps, which spoke
    of the other one.
    """
    response = example.responses[place]
    if action == "reweight":
        was = {"weight": response.weight}
        row["weight"] = round(response.weight * (1 - finding.doubt), 6)
    else:
        is_lowered = action == "flip" and finding.pair.is_alone and response.role == "positive"
        role = "negative" if is_lowered else "positive"
        was = {name: row.pop(name) for name in ("role", "reward", "steps") if name in row}
        rewards = [one.reward for one in example.responses if one.role == role and one.reward is not None]
        row |= {"role": role} | ({"reward": min(rewards)} if rewards else {})
    made = {"by": "repair", "action": action, "was": was, "evidence": finding.evidence}
    row["made"] = made | ({"before": row["made"]} if "made" in row else {})


def _difference(pair: Pair, features: np.ndarray) -> np.ndarray:
    """(F,) mean of the positives minus the negative."""
    positives = [index for index, one in enumerate(pair.example.responses) if one.role == "positive"]
    return features[positives].mean(0) - features[pair.index]
