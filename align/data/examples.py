"""The one record: its types, how a row of it is read, and the checks of single values that all formats share.

A row is one prompt with all its responses. Rows of other data sets are mapped onto it in `formats.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass

ROLES = ("positive", "negative", "sample")

Message = tuple[str, ...]  # role, content, and where it has tool calls or answers one: its other keys, as JSON
Prompt = str | tuple[Message, ...]  # plain text or messages; its tools, as JSON, are a first one of role `tools`
TOOLS = "tools"


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
    calls: str | None = None  # JSON of the tool calls that it makes, with or without a text
    made: str | None = None  # JSON of what the row says on how it was made; kept, nothing learns from it

    @property
    def said(self) -> str:
        """All of the answer, to compare it with others."""
        return self.text if self.calls is None else f"{self.text}\n{self.calls}"


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
        """All that the responses of a role say."""
        return [response.said for response in self.responses if response.role == role]


def to_row(example: Example) -> dict:
    """The record as a row of the project's own format: `parse_row` makes the same record of it."""
    from align.data.messages import as_dict, split_tools

    messages, tools = split_tools(example.prompt)
    prompt = messages if isinstance(messages, str) else [as_dict(message) for message in messages]
    responses = []
    for response in example.responses:
        row: dict = {"text": response.text, "role": response.role}
        if response.calls is not None:
            row["tool_calls"] = json.loads(response.calls)
        if response.reward is not None:
            row["reward"] = response.reward
        if response.weight != 1.0:
            row["weight"] = response.weight
        if response.steps:
            row["steps"] = [dataclasses.asdict(step) for step in response.steps]
        if response.behavior_logps is not None:
            row["behavior_logps"] = list(response.behavior_logps)
        if response.made is not None:
            row["made"] = json.loads(response.made)
        responses.append(row)
    return {"prompt": prompt, "responses": responses, "source": example.source} | ({"tools": tools} if tools else {})


def parse_row(row: object, *, source: str, place: str) -> Example:
    """Maps a row of any known format onto the record. Raises RowError with what is wrong."""
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}, not an object with a prompt and responses")
    from align.data.formats import find_reader  # here, because these are written in terms of this module
    from align.data.messages import with_tools

    reader = _record if "responses" in row else find_reader(row)
    if reader is None:
        raise RowError(
            "has no responses: give 'responses', 'chosen'/'rejected', 'positives'/'negatives' or 'completion'/'label'; "
            f"its keys are {', '.join(sorted(map(str, row))) or 'none'}"
        )
    prompt, responses = reader(row)
    if not responses:
        raise RowError("has no response")
    prompt = with_tools(prompt, row.get(TOOLS))
    return Example(prompt, tuple(responses), _unicode(str(row.get("source") or source), "'source'"), place)


def _record(row: dict) -> tuple[Prompt, list[Response]]:
    if not isinstance(row["responses"], list):
        raise RowError(f"'responses' is {kind_of(row['responses'])}, not a list")
    from align.data.messages import read_prompt

    prompt = read_prompt(row.get("prompt"))
    responses = [_response(item, index) for index, item in enumerate(row["responses"])]
    return prompt, behind(prompt, row["prompt"], responses)


def _response(item: object, index: int) -> Response:
    here = f"responses[{index}]"
    if not isinstance(item, dict):
        raise RowError(f"{here} is {kind_of(item)}, not an object with text and role")
    if item.get("role") not in ROLES:
        raise RowError(f"{here}.role is {item.get('role')!r}, not one of {', '.join(ROLES)}")
    calls = read_calls(item.get("tool_calls"), f"{here}.tool_calls")
    text = item.get("text") or "" if calls else read_text(item.get("text"), f"{here}.text")
    if not isinstance(text, str):
        raise RowError(f"{here}.text is {kind_of(text)}, not text")
    reward = None if item.get("reward") is None else read_number(item["reward"], f"{here}.reward")
    weight = 1.0 if item.get("weight") is None else read_number(item["weight"], f"{here}.weight")
    if weight < 0:
        raise RowError(f"{here}.weight is {weight:g}, below 0: the role says the direction")
    steps = read_steps(item.get("steps") or [], len(text), f"{here}.steps")
    made = None if item.get("made") is None else as_json(item["made"], f"{here}.made")
    return Response(text, item["role"], reward, weight, steps, _logps(item.get("behavior_logps"), here), calls, made)


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


def read_calls(value: object, name: str) -> str | None:
    """Tool calls as JSON, in one spelling; None for none."""
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(call, dict) for call in value):
        raise RowError(f"{name} is {kind_of(value)}, not a list of tool calls")
    return as_json(value, name)


def as_json(value: object, name: str) -> str:
    """A value of a row as JSON, in one spelling."""
    try:
        return _unicode(json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False), f"{name!r}")
    except (TypeError, ValueError, RecursionError):  # a table may hold dates; NaN is no JSON
        raise RowError(f"{name!r} holds what JSON cannot") from None


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
