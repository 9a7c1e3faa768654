"""The one record: its types, how a row of it is read, and the checks of single values that all formats share.

A row is one prompt with all its responses. Rows of other data sets are mapped onto it in `formats.py`.
"""

from __future__ import annotations

import dataclasses
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
    behavior_logps: tuple[float, ...] | None = None  # of each token, end-of-turn included, under who wrote the text


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
        raise RowError(f"is {kind_of(row)}, not an object with a prompt and responses")
    from align.data.formats import find_reader  # here, because formats are written in terms of this module

    reader = _record if "responses" in row else find_reader(row)
    if reader is None:
        raise RowError(
            "has no responses: give 'responses', 'chosen'/'rejected', 'positives'/'negatives' or 'completion'/'label'; "
            f"its keys are {', '.join(sorted(map(str, row))) or 'none'}"
        )
    prompt, responses = reader(row)
    if not responses:
        raise RowError("has no response")
    return Example(prompt, tuple(responses), _unicode(str(row.get("source") or source), "'source'"), place)


def _record(row: dict) -> tuple[Prompt, list[Response]]:
    if not isinstance(row["responses"], list):
        raise RowError(f"'responses' is {kind_of(row['responses'])}, not a list")
    prompt = read_prompt(row.get("prompt"))
    responses = [_response(item, index) for index, item in enumerate(row["responses"])]
    return prompt, behind(prompt, row["prompt"], responses)


def _response(item: object, index: int) -> Response:
    here = f"responses[{index}]"
    if not isinstance(item, dict):
        raise RowError(f"{here} is {kind_of(item)}, not an object with text and role")
    if item.get("role") not in ROLES:
        raise RowError(f"{here}.role is {item.get('role')!r}, not one of {', '.join(ROLES)}")
    text = read_text(item.get("text"), f"{here}.text")
    reward = None if item.get("reward") is None else read_number(item["reward"], f"{here}.reward")
    weight = 1.0 if item.get("weight") is None else read_number(item["weight"], f"{here}.weight")
    if weight < 0:
        raise RowError(f"{here}.weight is {weight:g}, below 0: the role says the direction")
    steps = read_steps(item.get("steps") or [], len(text), f"{here}.steps")
    return Response(text, item["role"], reward, weight, steps, _logps(item.get("behavior_logps"), here))


def _logps(values: object, here: str) -> tuple[float, ...] | None:
    if values is None:
        return None
    name = f"{here}.behavior_logps"
    if not isinstance(values, list) or not values:
        kind = "empty" if values == [] else kind_of(values)
        raise RowError(f"{name} is {kind}, not a list with a log-prob for each token")
    logps = tuple(read_number(value, f"{name}[{index}]") for index, value in enumerate(values))
    if max(logps) > 0:
        raise RowError(f"{name} holds {max(logps):g}, above 0: they are natural logs of probabilities")
    return logps


def read_steps(items: object, length: int, here: str) -> tuple[Step, ...]:
    """Steps of a text of `length` characters; `here` names them in messages."""
    if not isinstance(items, list) or not all(
        isinstance(item, dict) and type(item.get("end")) is int for item in items
    ):
        raise RowError(f"{here} is not a list of {{end, label}}")
    ends, labels = [item["end"] for item in items], [item.get("label") for item in items]
    if any(end > length or end <= before for before, end in zip([0, *ends], ends, strict=False)):
        raise RowError(f"{here}: ends {ends} do not rise within the {length} characters of the text")
    if any(label not in (1, -1, None) for label in labels):
        raise RowError(f"{here}: a label is 1, -1 or null")
    return tuple(Step(end, None if label is None else int(label)) for end, label in zip(ends, labels, strict=True))


ASSISTANT = "\n\nAssistant:"  # where the answer begins in a transcript of Anthropic's files
_TURN = re.compile(r"\n\n(Human|Assistant):")
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_prompt(value: object, name: str = "prompt") -> Prompt:
    """Messages, or plain text; a transcript in plain text becomes messages."""
    if isinstance(value, list):
        messages = read_messages(value, name)
        if messages[-1][0] == "assistant":
            raise RowError(f"{name!r} ends with an assistant message; it must end where the assistant answers")
        return messages
    return _dialogue(read_text(value, name))


def _dialogue(text: str) -> Prompt:
    """A transcript `Human: ... Assistant:` as messages, so that the model's own chat template applies."""
    body = text if text.startswith("\n\n") else "\n\n" + text
    body = body.rstrip()
    if not body.startswith("\n\nHuman:") or not body.endswith(ASSISTANT):
        return text
    parts = _TURN.split(body[: -len(ASSISTANT)])[1:]
    names, contents = parts[::2], [part.strip() for part in parts[1::2]]
    alternate = all(name == ("Human", "Assistant")[index % 2] for index, name in enumerate(names))
    if not alternate or len(names) % 2 == 0 or not all(contents):
        return text
    return tuple(
        ("user" if name == "Human" else "assistant", content) for name, content in zip(names, contents, strict=True)
    )


def behind(prompt: Prompt, given: object, responses: list[Response]) -> list[Response]:
    """The answers to `prompt`, which was read from `given`.

    Behind a transcript that became messages they lose the space that follows its last `Assistant:`; a chat
    template would make every answer begin with it.
    """
    if isinstance(prompt, str) or not isinstance(given, str):
        return responses
    return [_without_leading_space(response) for response in responses]


def _without_leading_space(response: Response) -> Response:
    text = response.text.lstrip()
    cut = len(response.text) - len(text)
    steps = tuple(Step(step.end - cut, step.label) for step in response.steps if step.end > cut)
    return dataclasses.replace(response, text=text, steps=steps)


def read_messages(value: list, name: str) -> tuple[tuple[str, str], ...]:
    """(role, content) of messages, also of ShareGPT's {from, value}."""
    messages = []
    for index, message in enumerate(value):
        here = f"{name}[{index}]"
        if isinstance(message, dict) and isinstance(message.get("from"), str):
            if message["from"] not in _SPEAKERS:
                raise RowError(f"{here}.from is {message['from']!r}, not one of {', '.join(_SPEAKERS)}")
            role, content, content_key = _SPEAKERS[message["from"]], message.get("value"), "value"
        elif isinstance(message, dict) and isinstance(message.get("role"), str):
            role, content, content_key = _unicode(message["role"], f"{here}.role"), message.get("content"), "content"
        else:
            raise RowError(f"{here} is not a message with role and content")
        messages.append((role, read_text(content, f"{here}.{content_key}")))
    if not messages:
        raise RowError(f"{name!r} is empty")
    return tuple(messages)


def read_text(value: object, name: str) -> str:
    """A text with something in it; `name` is what messages call it."""
    if not isinstance(value, str):
        raise RowError(f"{name!r} is missing" if value is None else f"{name!r} is {kind_of(value)}, not text")
    if not value.strip():
        raise RowError(f"{name!r} is empty")
    return _unicode(value, repr(name))


def _unicode(text: str, name: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON may hold half a surrogate pair; no tokenizer and no file takes that
        raise RowError(f"{name} is not valid Unicode text") from None
    return text


def read_number(value: object, name: str) -> float:
    """A finite number; `name` is what messages call it."""
    wrong = RowError(f"{name} is {value!r}, not a finite number")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong
    try:
        number = float(value)
    except OverflowError:  # a whole number may have any number of digits
        raise wrong from None
    if not math.isfinite(number):
        raise wrong
    return number


def kind_of(value: object) -> str:
    """What a JSON value is, in words."""
    names = {dict: "an object", list: "a list", str: "text", int: "a number", float: "a number", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
