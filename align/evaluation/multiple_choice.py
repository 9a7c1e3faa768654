"""Multiple choice: is the best right answer scored above every wrong one?

A question is a row with positives and negatives, each of them an option; options are scored as whole answers, end of
turn included, by the sum of their log-probs, and by that sum divided by the number of tokens. A tie with a wrong option
is an error. Every score is compared with the base's on the same questions (McNemar's exact test).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from align.data import nat, sources
from align.data.examples import Example
from align.data.ledger import Ledger
from align.data.tokenize import PromptTooLong, TemplateRefuses, TokenizedRow, encode_row
from align.errors import UserError, printable, shorten
from align.evaluation.intervals import bootstrap, mcnemar
from align.evaluation.subject import BASE, POLICY, Subject
from align.objectives import NEGATIVE, POSITIVE
from align.scoring.answers import answer_logps

SUM, PER_TOKEN = "sum", "per token"
TOKENS_AT_ONCE, ROWS_AT_ONCE = 4096, 64


@dataclass(frozen=True)
class Options:
    """The log-probs of all options of some questions."""

    logps: dict[str, list[np.ndarray]]  # head -> for each question (K,) in nats
    lengths: list[np.ndarray]  # (K,) tokens
    is_right: list[np.ndarray]  # (K,) bool
    places: list[str]

    def correct(self, weights: dict[str, float], how: str) -> np.ndarray:
        """(Q,) bool: which questions a weighted sum of heads gets right, by `how` it is summed over tokens."""
        found = []
        for index, (lengths, right) in enumerate(zip(self.lengths, self.is_right, strict=True)):
            score = sum(weight * self.logps[head][index] for head, weight in weights.items())
            score = score / lengths if how == PER_TOKEN else score
            found.append(score[right].max() > score[~right].max())
        return np.array(found)

    @property
    def chance(self) -> float:
        """The accuracy of guessing."""
        return float(np.mean([right.mean() for right in self.is_right]))


def questions(path: str, ledger: Ledger, where: str = "--data") -> list[Example]:
    """The rows of a source, named by the option `where`, that are questions; what is not is counted.

    Raises UserError if none is.
    """
    split = "train"
    if path.startswith(sources.BUILTIN) and sources.check(path, sources.HELD_OUT) is None:
        split = sources.HELD_OUT
    problem = sources.check(path, split)
    if problem:
        raise UserError(where, *problem)
    found = []
    for example in sources.read(path, split, on_bad_rows="skip", ledger=ledger):
        right, wrong = set(example.texts("positive")), set(example.texts("negative"))
        if not right or not wrong:
            ledger.drop(f"no {'wrong' if right else 'right'} answer", example.place)
        elif right & wrong:
            ledger.drop("an answer is both right and wrong", example.place)
        else:
            found.append(example)
    return found


def score(subject: Subject, examples: Sequence[Example], ledger: Ledger, where: str = "--data") -> Options:
    """All options under all heads of the subject. Raises UserError if no question can be scored."""
    encoded = [_encode(subject, example, ledger) for example in examples]
    rows = [row for row in encoded if row is not None]
    ledger.used = len(rows)
    if not rows:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(ledger.dropped.items()))
        raise UserError(where, f"no row is a question ({reasons})", "give rows with right and wrong answers")
    logps: dict[str, list[np.ndarray]] = {name: [] for name in subject.heads}
    title = f"scoring {len(subject.heads)} heads"
    with tqdm(total=len(rows), desc=title, unit="question", leave=False) as bar:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            some = rows[start : start + ROWS_AT_ONCE]
            heads = {name: (head, _asked(subject, name, some)) for name, head in subject.heads.items()}
            found = answer_logps(
                heads, layout=subject.layout, tokens_at_once=TOKENS_AT_ONCE, in_bf16=subject.in_bf16
            )  # fmt: skip
            for name, values in found.items():
                logps[name] += [one.double().numpy() for one in values]
            bar.update(len(some))
    return Options(
        logps,
        [np.array([len(one.ids) for one in row.responses]) for row in rows],
        [np.array([one.role == POSITIVE for one in row.responses]) for row in rows],
        [str(row.example.place) for row in rows],
    )


def measure(options: Options, scores: dict[str, dict[str, float]], seed: int = 0) -> dict:
    """{score: {sum | per token: accuracy, interval, won, lost and p against the base}}; `won`: the base was wrong."""
    result = {}
    for name, weights in scores.items():
        result[name] = {"weights": weights}
        for how in (SUM, PER_TOKEN):
            correct, base = options.correct(weights, how), options.correct({BASE: 1.0}, how)
            won, lost = int((correct & ~base).sum()), int((~correct & base).sum())
            change = correct.astype(float) - base
            result[name][how] = {
                "accuracy": float(correct.mean()),
                "interval": bootstrap(correct.astype(float), seed=seed),
                "won": won,
                "lost": lost,
                "change": float(change.mean()),
                "change_interval": bootstrap(change, seed=seed),
                "p": mcnemar(won, lost),
            }
    return result


def best_weight(options: Options, scores: dict[str, dict[str, float]], how: str, grid: Sequence[float]) -> float:
    """The w- of `grid` with which the ratio gets most questions right; the smallest of several."""
    ratio = scores["ratio"]
    weights = [{**ratio, "negative": -weight} for weight in grid]
    return grid[int(np.argmax([options.correct(one, how).mean() for one in weights]))]


def table(options: Options, result: dict) -> str:
    """The measurement for a terminal."""
    numbers = [len(right) for right in options.is_right]
    lines = [f"{len(numbers)} questions, {np.mean(numbers):.1f} options each, guessing {options.chance:.3f}", ""]
    lines.append(f"{'accuracy (95 % interval)':<32}{'by sum':<24}{'p':<10}{'per token':<24}{'p':<10}")
    for name, found in result.items():
        cells = ""
        for how in (SUM, PER_TOKEN):
            low, high = found[how]["interval"]
            cells += f"{found[how]['accuracy']:.3f} ({low:.3f} to {high:.3f})".ljust(24)
            cells += ("" if name == BASE else f"{found[how]['p']:.2g}").ljust(10)
        lines.append(f"{printable(name):<32}{cells}".rstrip())
    return "\n".join(lines)


def data_hash(path: str) -> str | None:
    """SHA-256 of the local files of a source; None of other sources."""
    digest, files = hashlib.sha256(), sources.files(path) if sources.is_local(path) else []
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest() if files else None


def _encode(subject: Subject, example: Example, ledger: Ledger) -> TokenizedRow | None:
    """The question in tokens; None, and an entry in the ledger, if one of its options cannot be scored whole."""
    aside, wanted = Ledger(), len(example.texts("positive")) + len(example.texts("negative"))
    try:
        row = encode_row(
            subject.tokenizer, example, roles={POSITIVE, NEGATIVE}, max_length=subject.max_length, ledger=aside
        )
    except PromptTooLong:
        ledger.drop("too long for data.max_length of the run", example.place)
        return None
    except TemplateRefuses as error:
        ledger.drop("the chat template refuses it", f"{example.place}: {shorten(error.what, 80)}")
        return None
    if aside.dropped["response truncated"]:
        ledger.drop("too long for data.max_length of the run", example.place)
        return None
    if len(row.responses) < wanted:
        ledger.drop("the chat template hides where an answer begins", example.place)
        return None
    return row


def _asked(subject: Subject, head: str, rows: Sequence[TokenizedRow]) -> list[TokenizedRow]:
    """The rows as a head is asked: under NAT the policy is asked behind the prompt of success."""
    if subject.prefix is None or head != POLICY:
        return list(rows)
    found = []
    for row in rows:
        example = dataclasses.replace(row.example, prompt=nat.labelled(row.example.prompt, subject.prefix))
        found.append(
            encode_row(subject.tokenizer, example, roles={POSITIVE, NEGATIVE}, max_length=1 << 30, ledger=Ledger())
        )
    return found
