"""The recipe sections that draw, make and repair negatives: sampling, degrade, repair."""

from __future__ import annotations

from dataclasses import dataclass

from align.judges.options import Verifier
from align.schema import option

CONDITIONS = ("both", "evidence", "instruction", "noise", "none")
GAPS = ("margin", "verifier", "judge")
ACTIONS = ("drop", "flip", "relabel", "reweight")


@dataclass(frozen=True, kw_only=True)
class InContext:
    """Answers to other prompts, wanted and unwanted, that the policy sees while it samples; scoring never does."""

    positives: int = option(2, ge=0, le=32, doc="Wanted answers shown, each with its prompt.")
    negatives: int = option(2, ge=0, le=32, doc="Unwanted answers shown, each with its prompt.")
    analysis: int = option(96, ge=0, doc="Tokens in which the model first says what sets them apart; 0: it does not.")
    characters: int = option(400, ge=20, doc="Longest prompt or answer of an example; the rest is cut off.")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    k: int = option(4, ge=1, doc="Samples a prompt.")
    temperature: float = option(1.0, gt=0, doc="Temperature of the policy that samples.")
    top_p: float = option(1.0, gt=0, le=1, doc="Nucleus: smallest set of tokens with this probability.")
    max_new_tokens: int = option(64, ge=1, doc="Longest sample, in tokens.")
    every: int = option(0, ge=0, doc="Steps between draws from the current policy; 0 draws once, before training.")
    instruction: str | None = option(None, doc="System prompt for sampling only; scoring uses the bare prompt.")
    in_context: InContext | None = option(None, doc="Examples in the prompt for sampling only; null: none.")
    batch_size: int = option(48, ge=1, doc="Samples generated at once on a device.")


@dataclass(frozen=True, kw_only=True)
class Degrade:
    """align negatives degrade: answers that were written without all that the prompt says."""

    condition: str = option(
        "both",
        choices=CONDITIONS,
        doc="What is taken away: the evidence and the instruction, one of them, or nothing (self-play); noise: half of "
        "the evidence's words are replaced.",
    )
    evidence: list[str] = option(
        list, doc="Keys of a row (passage, meta.facts) whose texts are put in front of its prompt, as its evidence."
    )
    model: str | None = option(None, doc="Who writes: another, weaker model's path; null: the policy.")
    prompts: int | None = option(None, ge=1, doc="Prompts that are answered, drawn by the seed; null: all.")
    kept_by: str = option("margin", choices=GAPS, doc="What must tell the answer from the row's positives.")
    gap: float = option(
        0.1, ge=0, doc="Least gap of a pair: nats a token (margin), difference of scores (judge); a verifier has none."
    )
    verifier: Verifier | None = option(None, doc="kept_by verifier: what tells right answers from wrong ones.")


@dataclass(frozen=True, kw_only=True)
class Repair:
    """align negatives repair: negatives that are right, and pairs that are labelled the wrong way round."""

    action: str = option(
        "drop",
        choices=ACTIONS,
        doc="What becomes of those found: drop; flip (exchange the labels of a pair); relabel (the negative becomes a "
        "positive); reweight (weight times the share of copies that trust it).",
    )
    folds: int = option(5, ge=2, le=50, doc="Parts of the prompts; each is judged by what was learned from the others.")
    copies: int = option(5, ge=1, le=50, doc="How often that is done, each time with other parts and other rows.")
    agree: float = option(0.8, gt=0, le=1, doc="Least share of the copies that must call a label wrong.")
    cascade: list[str] = option(list, doc="Judges (of judges:) asked about what was found, the cheapest first.")
    sure: float = option(0.2, gt=0, le=1, doc="Least difference of a judge's two scores; below, the next is asked.")
    suspects: str = option(
        "margins", choices=("margins", "all"), doc="What the cascade is asked about: what margins call wrong, or all."
    )
