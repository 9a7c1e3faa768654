"""Edits that negate a sentence, or take its negation away. A sentence is never negated twice."""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random

from align.negatives.edits import NEGATED, Answer, Edit, replace
from align.negatives.edits.words import VERBS

_CONTRACTED = {"can't": "can", "won't": "will", "shan't": "shall"}  # others lose their n't
_AUXILIARY = r"is|are|was|were|can|will|should|must|do|does|did"
_PARTICIPLE = r"(?=\s+(?:been|[a-z]+ed|[a-z]+en)\b)"
_POSITIVE = re.compile(
    rf"\b(?:{_AUXILIARY}|(?:has|have|had){_PARTICIPLE})\b(?=\s+[a-z\d])(?!\s+(?:is|was|are|were|be|of)\b)"
)
_VERB = re.compile(rf"(?<![-'’])\b(?:{'|'.join(VERBS)})\b(?=\s+(?!of\b)[a-z\d])")
_NOUN_BEFORE = re.compile(
    r"\b(?:the|an?|his|her|their|our|your|its|these|those|some|of|and|common|main|possible)\s+$", re.I
)
_SUBORDINATE = re.compile(
    r"\b(?:if|when|which|that|who|whose|whether|because|although|though|while|as|what|how|where|why|than|provided)\b",
    re.IGNORECASE,
)
_CONDITION = re.compile(r"\b(?:if|when|provided|as long as|because|although|though|while|than)\b", re.IGNORECASE)
_HEDGED = re.compile(
    r"\b(?:may|might|could|perhaps|maybe|sometimes|only|also|both|either|probably|would|let|few|little|rarely|seldom)\b",
    re.IGNORECASE,
)
_UNCOUNTED = {"evidence", "information", "proof", "research", "doubt", "data", "money", "water", "truth", "support",
              "knowledge", "experience"}  # fmt: skip
_PLURAL_NEXT = re.compile(r"\s+\w+\s+(?!(?:is|was|has|does|as|its|his|this|besides)\b)\w+[^s\W]s\b")  # special powers
_ANY = re.compile(r"\bany(?=\b|thing\b|one\b|body\b|where\b)")
_HANGS_ON_IT = re.compile(r"\b(?:ever|yet|at all|anymore|even|much)\b", re.IGNORECASE)
_ANSWER = re.compile(r"(?:Yes|No)\b(?=[,.!;:]|\s*$)")


def negation_edits(answer: Answer, draw: Random) -> Iterator[Edit]:
    """One edit of each sentence that can be turned round."""
    for begin, end in answer.sentences():
        sentence = answer.text[begin:end]
        if sentence.rstrip().endswith(("?", ":")):
            continue
        edit = _denied(answer, begin, end) if NEGATED.search(sentence) else _affirmed(answer, begin, end)
        head = _ANSWER.match(sentence)
        if head and begin == 0:  # `Yes` and `No` turn with the sentence they begin
            edit = _with_head(answer, head, edit, sentence)
        if edit is not None:
            yield edit


def _with_head(answer: Answer, head: re.Match, edit: Edit | None, sentence: str) -> Edit | None:
    turned = {"Yes": "No", "No": "Yes"}[head[0]]
    is_all = not sentence[head.end() :].strip(" .!,;:")
    if is_all:
        return Edit("negation", 0, head.end(), ((0, head.end(), turned),))
    if edit is None or edit.start < head.end():
        return None
    return Edit("negation", 0, edit.end, ((0, head.end(), turned), *edit.pieces))


def _denied(answer: Answer, begin: int, end: int) -> Edit | None:
    """The sentence without its only negation, its `any` turned to `some`. None where other words hang on it."""
    edit = None if _HANGS_ON_IT.search(answer.text, begin, end) else _without_not(answer, begin, end)
    if edit is None:
        return None
    found = [(one.start(), one.end(), "some") for one in _ANY.finditer(answer.text, edit.end, end)]
    return Edit(edit.kind, edit.start, found[-1][1] if found else edit.end, (*edit.pieces, *found))


def _without_not(answer: Answer, begin: int, end: int) -> Edit | None:
    sentence = answer.text[begin:end]
    head = _ANSWER.match(sentence)
    start = begin + (head.end() if head and begin == 0 else 0)
    found = list(NEGATED.finditer(answer.text, start, end))
    if len(found) != 1 or re.search(r"\bnot only\b|\bnot just\b|\bif not\b|\bor not\b", sentence, re.I):
        return None
    (one,) = found
    if _CONDITION.search(answer.text, start, one.start()):
        return None  # a condition turned round leaves what is said of it as it was
    behind = re.compile(r"\s+([A-Za-z]+)").match(answer.text, one.end(), end)
    word = one[0].lower()
    if word in ("not", "no") and behind:
        before = answer.text[begin : one.start()].rstrip().lower()
        if word == "not" and not re.search(rf"\b(?:{_AUXILIARY}|has|have|had|would|could)$", before):
            return None
        if word == "no" and not re.search(r"\b(?:is|are|was|were|has|have|had)$", before):
            return None
        noun = behind[1]
        if word == "no" and noun in ("longer", "one", "more", "such"):
            return None
        is_plural = word == "no" and re.search(r"\b(?:are|were)$", before) is not None
        new = noun if word == "not" or is_plural else _some(noun, answer.text[one.end() : end])
        return Edit("negation", one.start(), behind.end(), ((one.start(), behind.end(), new),))
    if word == "cannot":
        return replace(answer, "negation", *one.span(), "can")
    if word in ("n't", "n’t"):
        whole = re.compile(r"[A-Za-z]+['’]t\b").search(answer.text, max(begin, one.start() - 8), end)
        if whole is None:
            return None
        plain = whole[0].replace("’", "'")
        new = _CONTRACTED.get(plain.lower(), plain[:-3])
        return replace(answer, "negation", *whole.span(), new)
    if word == "without":
        return replace(answer, "negation", *one.span(), "with")
    return None


def _some(noun: str, behind: str) -> str:
    """What stands for `no X`: X of several, some of what cannot be counted, else one."""
    if noun.endswith("s") or _PLURAL_NEXT.match(behind):
        return noun
    if _UNCOUNTED & set(re.findall(r"\w+", behind)[:3]):
        return f"some {noun}"
    return f"{'an' if noun[0].lower() in 'aeio' else 'a'} {noun}"


def _affirmed(answer: Answer, begin: int, end: int) -> Edit | None:
    """The sentence with a negation behind the auxiliary or the verb of its main clause."""
    sentence = answer.text[begin:end]
    if _HEDGED.search(sentence):
        return None
    verbs = (one for one in _VERB.finditer(sentence) if not _NOUN_BEFORE.search(sentence[: one.start()]))
    found = _POSITIVE.search(sentence) or next(verbs, None)
    if found is None or not sentence[: found.start()].strip() or _SUBORDINATE.search(sentence[: found.start()]):
        return None
    word = found[0]
    new = f"does not {VERBS[word]}" if word in VERBS and word != "has" else f"{word} not"
    if word.lower() == "can":
        new = "cannot"
    if word == "has" and not re.match(_PARTICIPLE, sentence[found.end() :]):
        new = "does not have"
    return replace(answer, "negation", begin + found.start(), begin + found.end(), new)
