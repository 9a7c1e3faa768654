"""Prompts with less in them: evidence removed or made noise, the instruction made vague, each by rule.

The conditions of CDNS (SFO, arXiv 2506.03621, section 4: a blurred reference image, a generic prompt), carried over to
text. What counts as **evidence** is decided by rule, in a prompt as it is written:

* texts that the recipe names by their keys in the rows (a passage, facts); they stand in front of the full prompt;
* of messages: the system message, all turns before the last one of the user (examples, a dialogue so far), results of
  tools;
* of what the user asks last: all pieces but the question. Pieces are paragraphs, else lines, else sentences: the
  first of these that gives more than one. The question is the piece labelled `Question:` or the like, else the last
  one with a question mark (of sentences, all of them), else the first; a piece that only limits the answer (its length,
  its form) belongs to the instruction.

A prompt of one piece holds no evidence. The **instruction** becomes vague by dropping what limits the answer;
where nothing does, by asking for no more than its topic, which are its words without those of grammar. No rule knows
what a text means: look at the `prompt` of `draws.jsonl`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from align.data.examples import TOOLS, Prompt
from align.judges.segment import segment

FULL, VAGUE, TOPIC = "full", "vague", "topic"
_ASK, _LIMIT, _EVIDENCE = "ask", "limit", "evidence"
_MOST_TOPIC_WORDS = 8

_LABEL = re.compile(r"\s*(?:question|instruction|task|query|problem)\s*:", re.IGNORECASE)
_COUNT = r"(?:\d+|an?|one|two|three|four|five|six|seven|eight|nine|ten)"
_FORM = r"(?:words?|sentences?|paragraphs?|lines?|bullets?|bullet points?|points?|steps?|stanzas?|characters?|pages?)"
_KIND = r"(?:json|yaml|xml|csv|html|markdown|latex|table|list|bullet points|capital letters|lower case|upper case)"
_LIMITS = re.compile(
    r"\b(?:must|should|make sure|ensure|do not|don't|avoid|only|exactly|at least|at most|no more than|no longer than"
    r"|format|step by step|please (?:use|give|include|answer|write|provide)|answer (?:with|in)|respond (?:with|in)"
    rf"|include|{_COUNT} {_FORM})\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(
    r"\s*\([^()]*\)"
    r"|,?\s*\b(?:in|using|with|within|under)\s+"
    r"(?:(?:exactly|about|around|at most|at least|no more than|the form of)\s+)*"
    rf"(?:{_COUNT}\s+)?(?:(?:short|single|brief|numbered|bulleted)\s+)*(?:{_FORM}|{_KIND})(?:\s+format)?\b"
    r"|,?\s*\b(?:step by step|and explain why|and explain your (?:answer|reasoning))\b",
    re.IGNORECASE,
)
_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_GRAMMAR = frozenset(
    "a an the this that these those some any each every all both no not of in on at by for from to with within into "
    "about over under between among as than and or but if then so because while when where who whom whose which what "
    "why how is are was were be been being am do does did done have has had can could may might must shall should will "
    "would i you he she it we they me him her us them my your his its our their there here please question answer "
    "following given many much more most only just also very give write tell explain describe".split()
)


class Poor(NamedTuple):
    """A prompt under a condition, and what whoever answers it has."""

    prompt: Prompt
    evidence: bool | None  # whether the evidence is all there; None: the prompt holds none
    instruction: str  # full | vague (what limits the answer is dropped) | topic (no more than its topic)


def full(prompt: Prompt, given: str) -> Prompt:
    """The whole prompt: with the evidence that stands beside it in its row in front of what the user asks last."""
    if not given:
        return prompt
    if isinstance(prompt, str):
        return f"{given}\n\n{prompt}".rstrip()
    last = _last_user(prompt)
    role, content, *more = prompt[last]
    return (*prompt[:last], (role, f"{given}\n\n{content}", *more), *prompt[last + 1 :])


def degrade(prompt: Prompt, given: str, condition: str, noise: Callable[[str], str]) -> Poor | None:
    """The prompt under one of the conditions of `degrade.condition`; None where it should change it, but cannot.

    `given`: the evidence beside it. `noise` makes a noisy text of one.
    """
    spoil = {"both": _nothing, "evidence": _nothing, "noise": noise}.get(condition)
    is_vague = condition in ("both", "instruction")
    made = _of_text if isinstance(prompt, str) else _of_messages
    poor, holds_evidence, form = made(prompt, spoil, is_vague)
    kept = given if spoil is None else spoil(given)
    has_all = None if not holds_evidence and not given else spoil is None
    if form == FULL and has_all is not False and condition != "none":
        return None
    return Poor(full(poor, kept), has_all, form)


def noisy(name: str, words: Sequence[str]) -> Callable[[str], str]:
    """Makes noise of a text: half of its words, drawn under `name`, become words of `words`."""
    draw = random.Random(name)

    def noise(text: str) -> str:
        return _WORD.sub(lambda found: draw.choice(words) if draw.random() < 0.5 else found[0], text)

    return noise


def words_of(prompts: Sequence[Prompt]) -> list[str]:
    """The words of some prompts, each as often as it occurs: what noise is drawn from."""
    texts = (
        [one] if isinstance(one, str) else [message[1] for message in one if message[0] != TOOLS] for one in prompts
    )
    return [word for group in texts for text in group for word in _WORD.findall(text)]


def topic(text: str) -> str | None:
    """What a question is about: its words without those of grammar, in their order; None if none is left."""
    found = [word for word in _WORD.findall(text) if word.lower() not in _GRAMMAR]
    return " ".join(found[:_MOST_TOPIC_WORDS]) or None


def _nothing(text: str) -> str:
    return ""


def _of_text(text: str, spoil: Callable | None, is_vague: bool) -> tuple[str, bool, str]:
    """(the text under a condition, whether it holds evidence, the form of its instruction)."""
    pieces, form = _pieces(text), FULL
    holds_evidence = any(kind == _EVIDENCE for kind, _ in pieces)
    if is_vague:
        pieces, form = _vague(pieces)
    if spoil is not None:
        pieces = [(kind, spoil(piece) if kind == _EVIDENCE else piece) for kind, piece in pieces]
    return "".join(piece for _, piece in pieces).strip(), holds_evidence, form


def _vague(pieces: list[tuple[str, str]]) -> tuple[list[tuple[str, str]], str]:
    """(the pieces with a vague instruction, its form); as they are where no rule finds anything."""
    kept = [(kind, _CLAUSE.sub("", piece) if kind == _ASK else piece) for kind, piece in pieces if kind != _LIMIT]
    if kept != pieces and any(_WORD.search(piece) for kind, piece in kept if kind == _ASK):
        return kept, VAGUE
    about = topic(" ".join(piece for kind, piece in pieces if kind == _ASK))
    if about is None:
        return pieces, FULL
    asks = [index for index, (kind, _) in enumerate(pieces) if kind == _ASK]
    said = {index: "" for index in asks} | {asks[0]: f"Say something about {about}."}
    return [(kind, said.get(index, piece)) for index, (kind, piece) in enumerate(pieces)], TOPIC


def _of_messages(messages: tuple, spoil: Callable | None, is_vague: bool) -> tuple[Prompt, bool, str]:
    """The same of messages. Tools that may be called stay; without evidence the dialogue begins with the last turn."""
    last = _last_user(messages)
    role, content, *more = messages[last]
    text, in_text, form = _of_text(content, spoil, is_vague)
    before = [one for one in messages[:last] if one[0] != TOOLS]
    after = list(messages[last + 1 :])
    holds_evidence = in_text or bool(before) or any(one[0] == "tool" for one in after)
    if spoil is not None:
        spoiled = [(one[0], spoil(one[1]), *one[2:]) for one in before]
        before = [one for one in spoiled if one[1]] if all(one[1] for one in spoiled) else []
        after = [(one[0], spoil(one[1]), *one[2:]) if one[0] == "tool" else one for one in after]
    tools = [one for one in messages[:last] if one[0] == TOOLS]
    return (*tools, *before, (role, text, *more), *after), holds_evidence, form


def _last_user(messages: tuple) -> int:
    users = [index for index, message in enumerate(messages) if message[0] == "user"]
    return users[-1] if users else len(messages) - 1


def _pieces(text: str) -> list[tuple[str, str]]:
    """(kind, piece) whose pieces together are the text."""
    ways = (_breaks(text, r"\n\s*\n\s*"), _breaks(text, r"\n+\s*"), segment(text, "sentences"))
    chosen = next((number for number, way in enumerate(ways) if len(way) > 1), 2)
    ends = ways[chosen] or (len(text),)
    cuts = [text[begin:end] for begin, end in zip((0, *ends), ends, strict=False)]
    asks = _asking(cuts, is_sentences=chosen == 2)
    return [
        (_ASK if index in asks else _LIMIT if _LIMITS.search(piece) and len(piece) < 200 else _EVIDENCE, piece)
        for index, piece in enumerate(cuts)
    ]  # fmt: skip


def _breaks(text: str, pattern: str) -> tuple[int, ...]:
    ends = [found.end() for found in re.finditer(pattern, text) if found.end() < len(text)]
    return (*ends, len(text))


def _asking(pieces: Sequence[str], *, is_sentences: bool) -> set[int]:
    """The indices of the pieces that ask."""
    labelled = [index for index, piece in enumerate(pieces) if _LABEL.match(piece)]
    if labelled:
        return set(labelled[-1:])
    marked = [index for index, piece in enumerate(pieces) if piece.rstrip().rstrip("\"')*").endswith("?")]
    if not marked:
        marked = [index for index, piece in enumerate(pieces) if "?" in piece]
    if not marked:
        return {0}
    return set(marked) if is_sentences else {marked[-1]}
