"""`align negatives near-miss`: rows in, the same rows with near misses out."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

import align
from align.data import sources
from align.data.examples import Example, Response, to_row
from align.data.ledger import Ledger
from align.errors import UserError, shorten
from align.judges import verifiers
from align.judges.options import Verifier
from align.negatives.nearmiss import KINDS, NearMisses
from align.schema import nearest
from align.stage import Stage

VERIFIERS = ("numeric", "exact", "math")
_TOGETHER = 64  # rows written together


def main(source: str, out: str, *, kinds: str | None, most: int, seed: int, verifier: str | None) -> None:
    """Writes the rows of `source` to `out`, up to `most` negatives added to each. Raises UserError."""
    chosen, verify, path = _kinds(kinds), _verify(verifier), _output(out, source)
    ledger = Ledger()
    examples = sources.read(source, sources.default_split(source), on_bad_rows="skip", ledger=ledger)
    makes = NearMisses(examples, kinds=chosen, most=most, seed=seed, verify=verify)
    stage = Stage(path, {
        "align": align.__version__, "source": source, "rows_sha256": _digest(examples), "kinds": list(chosen),
        "n": most, "seed": seed, "verifier": verifier,
    })  # fmt: skip
    done = len(stage.rows)
    with tqdm(total=len(examples), initial=done, desc="near misses", unit="row") as bar:
        for start in range(done, len(examples), _TOGETHER):
            part = examples[start : start + _TOGETHER]
            stage.add([_with(example, makes.of(example)) for example in part])
            bar.update(len(part))
    counts = _counts(examples, stage.rows)
    stage.finish(**counts, broken_rows=ledger.as_dict()["dropped"])
    for reason, places in ledger.places.items():
        print(f"{reason}: {ledger.dropped[reason]:,} rows left out, the first: {shorten(places[0], 160)}")
    print(_told(out, counts), flush=True)


def _kinds(given: str | None) -> tuple[str, ...]:
    names = KINDS if given is None else tuple(dict.fromkeys(given.split(",")))
    for name in names:
        if name not in KINDS:
            raise UserError("--kinds", f"there is no kind {shorten(name)!r}", nearest(name, KINDS))
    return names


def _verify(name: str | None) -> verifiers.Verify | None:
    if name is None:
        return None
    if name not in VERIFIERS and "." not in name:
        raise UserError("--verifier", f"there is no {shorten(name)!r} here", nearest(name, VERIFIERS))
    return verifiers.load(Verifier(name=name))


def _output(out: str, source: str) -> Path:
    path, problem = Path(out).expanduser(), sources.check(source, sources.default_split(source))
    if problem:
        raise UserError("command line", *problem)
    if path.suffix != ".jsonl":
        raise UserError("--out", f"{shorten(out)} is not named .jsonl", "the rows are written as JSON lines")
    if any(path.resolve() == file.resolve() for file in sources.files(source)):
        raise UserError("--out", f"{shorten(out)} is one of the files that are read", "name another file")
    return path


def _digest(examples: Iterable[Example]) -> str:
    digest = hashlib.sha256()
    for example in examples:
        digest.update(json.dumps(to_row(example), sort_keys=True).encode())
    return digest.hexdigest()


def _with(example: Example, more: Sequence[Response]) -> dict:
    return to_row(dataclasses.replace(example, responses=(*example.responses, *more)))


def _counts(examples: Sequence[Example], rows: Sequence[dict]) -> dict:
    """How many rows and negatives of each kind; rows without any, and of these those without a positive."""
    added = [row["responses"][len(one.responses) :] for one, row in zip(examples, rows, strict=True)]
    without = [example for example, more in zip(examples, added, strict=True) if not more]
    return {
        "rows": len(rows),
        "added": dict(Counter(response["made"]["kind"] for more in added for response in more).most_common()),
        "rows_without": len(without),
        "rows_without_positive": sum(not example.texts("positive") for example in without),
    }


def _told(out: str, counts: dict) -> str:
    added = counts["added"]
    kinds = ", ".join(f"{kind} {number:,}" for kind, number in added.items())
    text = f"{shorten(out, 100)}: {counts['rows']:,} rows, {sum(added.values()):,} near misses"
    text += f" ({kinds})" if kinds else ""
    if counts["rows_without"]:
        text += (
            f"; {counts['rows_without']:,} rows gave none, {counts['rows_without_positive']:,} of them have no positive"
        )
    return text
