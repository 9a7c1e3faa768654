"""Prompts and messages: chat with systems, several turns and tools; transcripts in plain text."""

from __future__ import annotations

import json
import re

from align.data.examples import TOOLS, Message, Prompt, RowError, as_json, kind_of, read_calls, read_text

ASSISTANT = "\n\nAssistant:"  # where the answer begins in a transcript of Anthropic's files
_TURN = re.compile(r"\n\n(Human|Assistant):")
_OF_TOOLS = ("name", "tool_call_id")  # keys of a tool's result
_SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def read_prompt(value: object, name: str = "prompt") -> Prompt:
    """Messages, or plain text; a transcript in plain text becomes messages. "" is kept: the answer stands alone."""
    if isinstance(value, list):
        messages = read_messages(value, name)
        if messages[-1][0] == "assistant":
            raise RowError(f"{name!r} ends with an assistant message; it must end where the assistant answers")
        return messages
    if value == "":
        return value
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


def read_messages(value: list, name: str) -> tuple[Message, ...]:
    """Messages, also ShareGPT's {from, value}; texts in parts are joined, tool calls and results kept."""
    messages = tuple(_message(message, f"{name}[{index}]") for index, message in enumerate(value))
    if not messages:
        raise RowError(f"{name!r} is empty")
    return messages


def _message(message: object, here: str) -> Message:
    if isinstance(message, dict) and isinstance(message.get("from"), str):
        if message["from"] not in _SPEAKERS:
            raise RowError(f"{here}.from is {message['from']!r}, not one of {', '.join(_SPEAKERS)}")
        return _SPEAKERS[message["from"]], read_text(message.get("value"), f"{here}.value")
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise RowError(f"{here} is not a message with role and content")
    role, content = read_text(message["role"], f"{here}.role"), message.get("content")
    if role == TOOLS:
        raise RowError(f"{here}.role is 'tools'; tools are a column of the row")
    result = _OF_TOOLS if role == "tool" else ()
    more = {key: read_text(message[key], f"{here}.{key}") for key in result if message.get(key) is not None}
    calls = read_calls(message.get("tool_calls"), f"{here}.tool_calls")
    if calls is not None:
        more["tool_calls"] = json.loads(calls)
    if isinstance(content, list):
        content = "".join(_part(part, f"{here}.content[{index}]") for index, part in enumerate(content))
    if calls is not None and content is None:
        content = ""
    elif not (calls is not None or role == "tool") or not isinstance(content, str):  # a tool may answer nothing
        content = read_text(content, f"{here}.content")
    return (role, content, as_json(more, here)) if more else (role, content)


def _part(part: object, here: str) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        kind = part.get("type") if isinstance(part, dict) else kind_of(part)
        raise RowError(f"{here} is {kind!r}; only parts of type text can be read")
    return read_text(part.get("text"), f"{here}.text")


def as_dict(message: Message) -> dict:
    """A message as chat templates take it."""
    more = json.loads(message[2]) if len(message) > 2 else {}
    return {"role": message[0], "content": message[1], **more}


def calls_of(message: Message) -> str | None:
    """The tool calls of a message, as JSON."""
    calls = as_dict(message).get("tool_calls")
    return None if calls is None else as_json(calls, "tool_calls")


def with_tools(prompt: Prompt, tools: object) -> Prompt:
    """The prompt with the tools of its row in front; a list of JSON schemas, or one as text."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError:
            raise RowError("'tools' is text, but not JSON") from None
    if tools is None or tools == []:
        return prompt
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError(f"'tools' is {kind_of(tools)}, not a list of objects")
    messages = (("user", prompt),) if isinstance(prompt, str) else prompt
    return ((TOOLS, as_json(tools, TOOLS)), *messages)


def split_tools(prompt: Prompt) -> tuple[Prompt, list[dict] | None]:
    """(the prompt without its tools, the tools)."""
    if isinstance(prompt, str) or prompt[0][0] != TOOLS:
        return prompt, None
    return prompt[1:], json.loads(prompt[0][1])
