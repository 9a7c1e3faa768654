"""The one record, and every foreign format mapped onto it.

A row is one prompt with all its responses. The words of other data sets ("chosen", "rejected", "completion",
"label") exist only here.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass

ROLES = ("positive", "negative", "sample")

Prompt = str | tuple[tuple[str, str], ...]  # plain text, or (role, content) messages


class RowError(ValueError):
    """What is wrong with one row, in words for its author."""


@dataclass(frozen=True)
class Step:
    """A judged piece of a response: `text[previous end:end]`."""

    end: int  # character offset after the step
    label: int | None  # 1 good, -1 bad, None unjudged


@dataclass(frozen=True)
class Response:
    text: str
    role: str  # positive | negative | sample
    reward: float | None = None
    weight: float = 1.0
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True)
class Example:
    """One prompt with all its responses, and where it came from."""

    prompt: Prompt
    responses: tuple[Response, ...]
    source: str  # free text of the row, or the data source
    place: str  # file:line, for messages

    @property
    def key(self) -> str:
        """16 hex digits that name the prompt: the same prompt has the same key in every file and run."""
        return hashlib.sha256(json.dumps(self.prompt).encode()).hexdigest()[:16]

    def texts(self, role: str) -> list[str]:
        return [response.text for response in self.responses if response.role == role]


def parse_row(row: object, *, source: str, place: str) -> Example:
    """Maps a row of any known format onto the record. Raises RowError with what is wrong."""
    if not isinstance(row, dict):
        raise RowError(f"is {_kind(row)}, not an object with a prompt and responses")
    reader = next((read for needed, read in _FORMATS if needed <= row.keys()), None)
    if reader is None:
        raise RowError(
            "has no responses: give 'responses', 'chosen'/'rejected', 'positives'/'negatives' or 'completion'/'label'; "
            f"its keys are {', '.join(sorted(map(str, row))) or 'none'}"
        )
    prompt, responses = reader(row)
    if not responses:
        raise RowError("has no response")
    return Example(prompt, tuple(responses), str(row.get("source") or source), place)


def _record(row: dict) -> tuple[Prompt, list[Response]]:
    if not isinstance(row["responses"], list):
        raise RowError(f"'responses' is {_kind(row['responses'])}, not a list")
    return _prompt(row.get("prompt")), [_response(item, index) for index, item in enumerate(row["responses"])]


def _response(item: object, index: int) -> Response:
    here = f"responses[{index}]"
    if not isinstance(item, dict):
        raise RowError(f"{here} is {_kind(item)}, not an object with text and role")
    if item.get("role") not in ROLES:
        raise RowError(f"{here}.role is {item.get('role')!r}, not one of {', '.join(ROLES)}")
    text = _text(item.get("text"), f"{here}.text")
    reward = None if item.get("reward") is None else _number(item["reward"], f"{here}.reward")
    weight = 1.0 if item.get("weight") is None else _number(item["weight"], f"{here}.weight")
    if weight < 0:
        raise RowError(f"{here}.weight is {weight:g}, below 0: the role says the direction")
    return Response(text, item["role"], reward, weight, _steps(item.get("steps") or [], len(text), here))


def _steps(items: object, length: int, here: str) -> tuple[Step, ...]:
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and type(item.get("end")) is int for item in items
    ):
        raise RowError(f"{here}.steps is not a list of {{end, label}}")
    steps = tuple(Step(item["end"], item.get("label")) for item in items)
    ends = [step.end for step in steps]
    if any(end > length or end <= before for before, end in zip([0, *ends], ends, strict=False)):
        raise RowError(f"{here}.steps: ends {ends} do not rise within the {length} characters of the text")
    if any(step.label not in (1, -1, None) for step in steps):
        raise RowError(f"{here}.steps: a label is 1, -1 or null")
    return steps


def _pair(row: dict) -> tuple[Prompt, list[Response]]:
    chosen, rejected = row["chosen"], row["rejected"]
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _message_pair(row.get("prompt"), _messages(chosen, "chosen"), _messages(rejected, "rejected"))
    chosen, rejected = _text(chosen, "chosen"), _text(rejected, "rejected")
    if row.get("prompt") is not None:
        prompt = _prompt(row["prompt"])
    else:  # the dialogue is in both texts, as in Anthropic's files: it ends where the last answer begins
        cut = min(chosen.rfind(_ASSISTANT), rejected.rfind(_ASSISTANT)) + len(_ASSISTANT)
        if cut < len(_ASSISTANT) or chosen[:cut] != rejected[:cut]:
            raise RowError("has no prompt, and 'chosen' and 'rejected' do not begin with the same dialogue")
        prompt = _prompt(chosen[:cut])
        chosen, rejected = _text(chosen[cut:], "chosen"), _text(rejected[cut:], "rejected")
    return prompt, [Response(chosen, "positive"), Response(rejected, "negative")]


def _message_pair(prompt: object, chosen: tuple, rejected: tuple) -> tuple[Prompt, list[Response]]:
    if prompt is not None:
        messages = _prompt(prompt)
        if isinstance(messages, str):
            messages = (("user", messages),)
        if chosen[: len(messages)] == messages == rejected[: len(messages)]:  # some files repeat the prompt in both
            chosen, rejected = chosen[len(messages) :], rejected[len(messages) :]
    else:
        messages = chosen[:-1]
        chosen, rejected = chosen[-1:], rejected[len(messages) :] if rejected[:-1] == messages else ()
    if not messages or any(len(side) != 1 or side[0][0] != "assistant" for side in (chosen, rejected)):
        raise RowError("'chosen' and 'rejected' must be the same prompt with one assistant message each")
    return messages, [Response(chosen[0][1], "positive"), Response(rejected[0][1], "negative")]


def _labelled(row: dict) -> tuple[Prompt, list[Response]]:
    if not isinstance(row["label"], bool) and row["label"] not in (0, 1):
        raise RowError(f"'label' is {row['label']!r}, not true or false")
    completion = row["completion"]
    if isinstance(completion, list):
        messages = _messages(completion, "completion")
        if len(messages) != 1 or messages[0][0] != "assistant":
            raise RowError("'completion' must be one assistant message")
        completion = messages[0][1]
    role = "positive" if row["label"] else "negative"
    return _prompt(row.get("prompt")), [Response(_text(completion, "completion"), role)]


def _lists(row: dict) -> tuple[Prompt, list[Response]]:
    responses = []
    for key, role in (("positives", "positive"), ("negatives", "negative")):
        texts = row.get(key) or []
        if not isinstance(texts, list):
            raise RowError(f"{key!r} is {_kind(texts)}, not a list of texts")
        responses += [Response(_text(text, f"{key}[{index}]"), role) for index, text in enumerate(texts)]
    return _prompt(row.get("prompt")), responses


# Keys a row must have -> how it is read; the first match wins.
_FORMATS = (
    ({"responses"}, _record),
    ({"chosen", "rejected"}, _pair),
    ({"completion", "label"}, _labelled),
    ({"positives"}, _lists),
    ({"negatives"}, _lists),
)

_ASSISTANT = "\n\nAssistant:"
_TURN = re.compile(r"\n\n(Human|Assistant):")


def _prompt(value: object) -> Prompt:
    if isinstance(value, list):
        messages = _messages(value, "prompt")
        if messages[-1][0] == "assistant":
            raise RowError("'prompt' ends with an assistant message; it must end where the assistant answers")
        return messages
    return _dialogue(_text(value, "prompt"))


def _dialogue(text: str) -> Prompt:
    """A transcript `Human: ... Assistant:` as messages, so that the model's own chat template applies."""
    body = text if text.startswith("\n\n") else "\n\n" + text
    body = body.rstrip()
    if not body.startswith("\n\nHuman:") or not body.endswith(_ASSISTANT):
        return text
    parts = _TURN.split(body[: -len(_ASSISTANT)])[1:]
    names, contents = parts[::2], [part.strip() for part in parts[1::2]]
    alternate = all(name == ("Human", "Assistant")[index % 2] for index, name in enumerate(names))
    if not alternate or len(names) % 2 == 0 or not all(contents):
        return text
    return tuple(
        ("user" if name == "Human" else "assistant", content) for name, content in zip(names, contents, strict=True)
    )


def _messages(value: list, name: str) -> tuple[tuple[str, str], ...]:
    messages = []
    for index, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowError(f"{name}[{index}] is not a message with role and content")
        messages.append((message["role"], _text(message.get("content"), f"{name}[{index}].content")))
    if not messages:
        raise RowError(f"{name!r} is empty")
    return tuple(messages)


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{name!r} is missing" if value is None else f"{name!r} is {_kind(value)}, not text")
    if not value.strip():
        raise RowError(f"{name!r} is empty")
    return value


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise RowError(f"{name} is {value!r}, not a finite number")
    return float(value)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
