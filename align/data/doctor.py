"""`align doctor`: what is wrong with rows before anybody learns from them, and a repaired copy of them.

Rows are read twice and never kept: first for what only all of them tell together (texts under both roles, lengths,
openings, the held-out side), then one by one. Memory grows by some hundred bytes a row.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from align.data import sources
from align.data.doctor_checks import CHECKS, FAULT, ends_well, prompt_texts, refuses, text_key, texts
from align.data.examples import Example, RowError, parse_row
from align.data.near_duplicates import NearDuplicates, runs
from align.data.row_checks import RowChecks
from align.errors import UserError, printable, shorten

SHOWN = 10  # places of a check that are named
LEAST = 30  # responses of a role from which on shares and lengths are judged
BIASED, REFUSING, BOILERPLATE = 0.65, 0.10, 0.15  # AUC of the length; shares of the answers of a role
LEAST_RUNS = 4  # runs of three words of a prompt from which on another like it is the same question
_OPENING = 5  # words

Source = tuple[str, str]  # path, split


@dataclass
class Report:
    """What was found."""

    rows: int = 0
    responses: Counter = field(default_factory=Counter)  # role -> how many
    counts: Counter = field(default_factory=Counter)  # check -> how often
    places: dict[str, list[str]] = field(default_factory=dict)
    details: dict[str, str] = field(default_factory=dict)  # check -> its size, in words
    lengths: dict[str, float] = field(default_factory=dict)  # median characters by role, and the AUC
    fixed: Counter = field(default_factory=Counter)  # what --fix did

    def add(self, check: str, place: object = "", detail: str = "") -> None:
        self.counts[check] += 1
        shown = self.places.setdefault(check, [])
        if place and len(shown) < SHOWN:
            shown.append(str(place))
        if detail:
            self.details[check] = detail

    @property
    def of_rows(self) -> set[str]:
        """The checks whose places are rows."""
        return {name for name, places in self.places.items() if places} - {"one-class source", "unreadable file"}

    @property
    def has_faults(self) -> bool:
        return any(CHECKS[name].severity == FAULT for name in self.counts)

    def as_dict(self) -> dict:
        findings = [
            {"check": name, "severity": check.severity, "count": self.counts[name], "first": self.places[name],
             "detail": self.details.get(name), "means": check.what, "fix": check.fix}
            for name, check in CHECKS.items() if self.counts[name]
        ]  # fmt: skip
        return {"rows": self.rows, "responses": dict(self.responses), "lengths": self.lengths, "findings": findings,
                "fixed": dict(self.fixed)}  # fmt: skip


class HeldOutTexts:
    """Finds the row to measure on that a row to learn from is nearly the same as, in all its texts or in its prompt."""

    def __init__(self) -> None:
        self.whole, self.prompts = NearDuplicates(), NearDuplicates()

    def add(self, place: object, example: Example) -> None:
        self.whole.add(str(place), " ".join(texts(example)))
        self.prompts.add(str(place), " ".join(prompt_texts(example)))

    def match(self, example: Example) -> str | None:
        prompt = " ".join(prompt_texts(example))
        found = self.whole.match(" ".join(texts(example)))
        return found or (self.prompts.match(prompt) if len(runs(prompt)) >= LEAST_RUNS else None)


@dataclass
class Survey:
    """What all rows tell together."""

    roles: dict[int, int] = field(default_factory=dict)  # prompt and text -> 1 positive, 2 negative, 3 both
    prompts: Counter = field(default_factory=Counter)  # key of the prompt -> rows
    lengths: dict[str, list[int]] = field(default_factory=dict)  # role -> characters
    refusals: Counter = field(default_factory=Counter)
    openings: dict[str, Counter] = field(default_factory=dict)
    finished: Counter = field(default_factory=Counter)  # role -> answers that end like a sentence
    held_out: HeldOutTexts = field(default_factory=HeldOutTexts)
    words: list[int] = field(default_factory=list)  # of negatives
    has_both: dict[str, set[str]] = field(default_factory=dict)  # source -> roles

    def see(self, path: str, example: Example) -> None:
        """A row to learn from."""
        self.prompts[example.key] += 1
        for response in example.responses:
            role, text = response.role, response.text
            self.has_both.setdefault(path, set()).add(role)
            if role in ("positive", "negative"):
                key = text_key(example, response.said)
                self.roles[key] = self.roles.get(key, 0) | (1 if role == "positive" else 2)
            self.lengths.setdefault(role, []).append(len(response.said))
            self.refusals[role] += refuses(text)
            self.finished[role] += ends_well(text)
            words = text.split()
            if role == "negative":
                self.words.append(len(words))
            if len(words) > _OPENING + 3:
                self.openings.setdefault(role, Counter())[" ".join(words[:_OPENING]).lower()] += 1

    @functools.cached_property
    def usual_negative(self) -> float:
        """Words of a negative, the median; 0 where there are too few to say. To be asked when all rows were seen."""
        return median(self.words) if len(self.words) >= LEAST else 0.0

    def usually_finished(self, role: str) -> bool:
        count = len(self.lengths.get(role, ()))
        return count >= LEAST and self.finished[role] >= 0.8 * count

    def judge(self, report: Report) -> None:
        """Adds what concerns whole sources and roles."""
        for path, found in self.has_both.items():
            if len(found & {"positive", "negative"}) == 1:
                report.add("one-class source", path, f"{shorten(path)}: {', '.join(sorted(found))} only")
        for role, values in self.lengths.items():
            count = len(values)
            if count < LEAST:
                continue
            if self.refusals[role] >= REFUSING * count:
                report.add("refusals", "", f"{self.refusals[role] / count:.0%} of the {role}s")
            opening, times = self.openings.get(role, Counter({"": 0})).most_common(1)[0]
            if times >= BOILERPLATE * count:
                report.add("boilerplate", "", f"{times / count:.0%} of the {role}s begin {shorten(opening, 50)!r}")
        goods, bads = self.lengths.get("positive", []), self.lengths.get("negative", [])
        if goods and bads:
            report.lengths = {"positive": median(goods), "negative": median(bads), "auc": auc(goods, bads)}
            far = abs(report.lengths["auc"] - 0.5) >= BIASED - 0.5
            if min(len(goods), len(bads)) >= LEAST and far:
                report.add("length bias", "", length_words(report.lengths))


def examine(
    given: Sequence[Source], *, tokenizer=None, max_length: int | None = None, evaluated: Sequence[Source] = (),
    holdout: float = 0.0, fix=None,
) -> Report:  # fmt: skip
    """Looks at all rows of the sources. Raises UserError where one cannot be read.

    `tokenizer`: tokens are checked, too, up to `max_length`. `evaluated`: sources that are measured on; `holdout`: the
    share of the prompts that is. `fix`: called with each repaired record.
    """
    report, survey = Report(), Survey()
    for path, split in evaluated:
        for place, example in examples(path, split):
            if isinstance(example, Example):
                survey.held_out.add(place, example)
    for path, split in given:
        for place, example in examples(path, split):
            if not isinstance(example, Example):
                continue
            if _is_held_out(path, example, holdout):
                survey.held_out.add(place, example)
            else:
                survey.see(path, example)
    survey.judge(report)
    checks = RowChecks(report, survey, tokenizer, max_length)
    for path, split in given:
        for place, example in examples(path, split):
            if isinstance(example, UserError):
                report.add("unreadable file", f"{place}: {printable(example.what)}")
                continue
            report.rows += 1
            if isinstance(example, RowError):
                report.add("broken row", f"{place}: {printable(str(example))}")
                report.fixed["broken rows left out"] += fix is not None
                continue
            report.responses.update(response.role for response in example.responses)
            repaired = checks.look(example, is_held_out=_is_held_out(path, example, holdout))
            if fix is not None and repaired is not None:
                fix(repaired)
    if not report.rows and not report.counts["unreadable file"]:
        raise UserError(", ".join(shorten(path) for path, _ in given), "holds no row", "name files with rows")
    return report


def examples(path: str, split: str) -> Iterator[tuple[object, Example | RowError | UserError]]:
    """(place, row) of a source; RowError for one that is broken, UserError where a file cannot be read further."""
    damage: list[UserError] = []
    for place, row in sources.rows(path, split, on_damage=damage.append):
        yield from ((error.where, error) for error in damage)
        damage.clear()
        try:
            yield place, row if isinstance(row, RowError) else parse_row(row, source=path, place=place)
        except RowError as error:
            yield place, error
    yield from ((error.where, error) for error in damage)


def _is_held_out(path: str, example: Example, holdout: float) -> bool:
    return not path.startswith(sources.BUILTIN) and sources.is_held_out(example, holdout)


def median(values: Sequence[int]) -> float:
    import numpy as np

    return float(np.median(values))


def auc(goods: Sequence[int], bads: Sequence[int]) -> float:
    """Probability that a positive is longer than a negative, both drawn at random; half of a tie."""
    import numpy as np

    ordered = np.sort(np.asarray(bads))
    below, up_to = (np.searchsorted(ordered, goods, side) for side in ("left", "right"))
    return float((below + up_to).mean() / 2 / len(ordered))


def length_words(lengths: dict[str, float]) -> str:
    """The size of a length bias."""
    longer = max(lengths["auc"], 1 - lengths["auc"])
    role = "positive" if lengths["auc"] > 0.5 else "negative"
    return (
        f"a {role} is the longer one with probability {longer:.2f}; medians {lengths['positive']:.0f} characters "
        f"(positives) and {lengths['negative']:.0f} (negatives)"
    )
