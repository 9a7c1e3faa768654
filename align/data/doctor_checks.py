"""What `align doctor` looks for: the name of each check, what it means, and the tests of single texts and rows."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from typing import NamedTuple

from align.data.examples import Example, Response

FAULT, WARNING, NOTE = "fault", "warning", "note"


class Check(NamedTuple):
    severity: str
    what: str  # what it means
    fix: str


CHECKS = {
    "unreadable file": Check(FAULT, "what stands behind this place cannot be read", "copy the file again"),
    "broken row": Check(FAULT, "cannot be read as a prompt with responses", "mend it; --fix leaves it out"),
    "identical positive and negative": Check(
        FAULT, "the same text is called good and bad: nothing can be learned from it", "--fix takes both out"
    ),
    "alike positive and negative": Check(
        WARNING, "they differ in case or spaces alone", "check what was to be learned; nothing is changed"
    ),
    "identical after truncation": Check(
        FAULT, "positive and negative differ behind data.max_length only", "raise data.max_length"
    ),
    "same text under both roles": Check(
        FAULT, "in one row it is good, in another, for the same prompt, bad", "--fix takes it out of all of them"
    ),
    "duplicate row": Check(WARNING, "prompt and responses have been there before", "--fix keeps the first"),
    "repeated prompt": Check(NOTE, "another row has this prompt: they are on the same side of a hold-out", ""),
    "near-duplicate of a held-out row": Check(
        WARNING,
        "measured on what was trained on: it shares 8 of 10 runs of three words with it, or its prompt does",
        "--fix leaves it out",
    ),
    "empty prompt": Check(NOTE, "its answers stand alone, behind an empty message of the user", ""),
    "one-class source": Check(NOTE, "all its answers are of one role: mixing it is up to data.mix and retain", ""),
    "special token in a text": Check(
        FAULT, "it is read as that token: an answer may end where it stands", "--fix cuts it from the ends"
    ),
    "missing BOS": Check(
        WARNING, "the tokenizer begins texts with BOS, the chat template does not", "check the template"
    ),
    "double BOS": Check(FAULT, "the prompt begins with a token that is written anyway", "--fix cuts it"),
    "double EOS": Check(FAULT, "the answer ends with a token that is written anyway", "--fix cuts it"),
    "missing EOS": Check(
        WARNING, "nothing ends an answer in the chat template: the tokenizer's EOS is put there", "check the template"
    ),
    "prompt boundary unclear": Check(
        FAULT, "the template writes the prompt otherwise before this answer: it is dropped", "check the template"
    ),
    "template refuses": Check(FAULT, "the chat template takes no such messages", "data.on_bad_rows: skip, or reword"),
    "no room for a response": Check(FAULT, "the prompt fills data.max_length", "raise it; --fix leaves the row out"),
    "truncated response": Check(WARNING, "longer than data.max_length: its end is not learned", "raise it"),
    "broken encoding": Check(
        FAULT, "replacement characters, mis-decoded UTF-8 or control characters", "--fix undoes what is unambiguous"
    ),
    "ends in mid-sentence": Check(NOTE, "most answers of this role end with punctuation, this one does not", ""),
    "too-short negative": Check(
        WARNING, "a word or two where others say much: the length gives it away", "look whether they are real answers"
    ),
    "length bias": Check(WARNING, "the length alone tells good from bad", "balance lengths, or normalise by length"),
    "refusals": Check(WARNING, "many answers of one role refuse: refusing itself will be learned", "look at them"),
    "boilerplate": Check(WARNING, "many answers of one role begin alike: the opening will be learned", "vary it"),
    "likely flipped": Check(
        WARNING, "the model is as sure of the contrary as it is of the pairs it agrees with", "look at them"
    ),
}

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MOJIBAKE = re.compile(
    "[\u00c2\u00c3\u00e2][\u0080-\u00bf\u20ac\u0152\u0153\u0160\u0161\u017d\u017e\u0178\u2013-\u2122]"
)
_REFUSAL = re.compile(
    r"\s*(i['\u2019]?m sorry|i am sorry|sorry,|i can(['\u2019]t|not)|i['\u2019]m (not able|unable)"
    r"|i am (not able|unable)"
    r"|i won['\u2019]t|as an ai|i must decline|i do not feel comfortable|i have no comment)",
    re.IGNORECASE,
)


def is_broken(text: str) -> bool:
    """Whether a text holds the traces of a wrong decoding, or control characters."""
    return "\ufffd" in text or bool(_CONTROL.search(text)) or bool(_MOJIBAKE.search(text))


def mended(text: str) -> str:
    """`text` decoded as it should have been, where that is unambiguous, and without control characters."""
    if _MOJIBAKE.search(text):
        for codec in ("cp1252", "latin-1"):
            try:
                text = text.encode(codec).decode("utf-8")
                break
            except (UnicodeEncodeError, UnicodeDecodeError):
                continue
    return _CONTROL.sub("", text)


def refuses(text: str) -> bool:
    return bool(_REFUSAL.match(text))


def plain(text: str) -> str:
    """A text without case and spaces, to compare."""
    return "".join(text.lower().split())


def texts(example: Example) -> Iterator[str]:
    """All texts of a record."""
    yield from prompt_texts(example)
    yield from (response.text for response in example.responses)


def prompt_texts(example: Example) -> list[str]:
    return [example.prompt] if isinstance(example.prompt, str) else [message[1] for message in example.prompt]


def contradictions(example: Example) -> tuple[set[str], set[str]]:
    """(texts that are positive and negative here, further ones that are but for case and spaces)."""
    goods, bads = (set(example.texts(role)) for role in ("positive", "negative"))
    alike = {plain(text) for text in goods} & {plain(text) for text in bads}
    exact = goods & bads
    return exact, {text for text in goods | bads if plain(text) in alike} - exact


def stripped(text: str, tokens: list[str]) -> str:
    """`text` without special tokens at its ends, and without the spaces around them."""
    while True:
        bare = text.strip()
        found = next((token for token in tokens if bare.startswith(token) or bare.endswith(token)), None)
        if found is None:
            return text
        text = bare.removeprefix(found).removesuffix(found).strip()


def too_short(response: Response, example: Example, usual: float) -> bool:
    """Whether a negative has a word or two where the positives of its row have more than ten.

    In a row without positives, where a negative `usual`ly has so many.
    """
    if response.role != "negative" or response.calls is not None:
        return False
    goods = [len(text.split()) for text in example.texts("positive")]
    return len(response.text.split()) <= 2 and min(goods, default=usual) > 10


def text_key(example: Example, text: str) -> int:
    """64 bits that name a text behind its prompt."""
    return int.from_bytes(hashlib.blake2b(f"{example.key}\n{text}".encode(), digest_size=8).digest(), "big")


def row_key(example: Example) -> int:
    """64 bits that name a prompt with its responses, whatever their order."""
    whole = json.dumps([example.key, sorted((one.role, one.said) for one in example.responses)])
    return int.from_bytes(hashlib.blake2b(whole.encode(), digest_size=8).digest(), "big")


def ends_well(text: str) -> bool:
    """Whether an answer ends like a sentence, a formula, or code."""
    return plain(text)[-1:] in tuple(".!?\"')]}`>:;*\u2026\u201d\u2019\u3002\uff01\uff1f0123456789")
