"""Prompts and answers as text, as the model's chat template writes them.

An answer ends with the template's end-of-turn token; what a template adds behind that token (a newline, say) is never
generated and never scored. Which token that is, a probe tells: what the template writes behind an answer.
"""

from __future__ import annotations

import functools
import json

from align.data.examples import Prompt
from align.data.messages import as_dict, split_tools
from align.errors import UserError, shorten

_PROBE = "Answer7391"  # occurs in no template


class TemplateRefuses(UserError):
    """The chat template raises an error on these messages."""


def prompt_text(tokenizer, prompt: Prompt, instruction: str | None = None) -> str:
    """The prompt as the model reads it, up to where its answer begins.

    `instruction` goes into the system message (in front of one that is there), or before the first user message
    where the template has no system role; for plain text, or a model without a chat template, it is a paragraph
    before the prompt.
    """
    if isinstance(prompt, str) and tokenizer.chat_template is None:
        return f"{instruction}\n\n{prompt}" if instruction else prompt
    messages, tools = _messages(tokenizer, prompt)
    if not instruction:
        return _render(tokenizer, messages, tools, for_answer=True)
    what = "the model's chat template leaves it out"
    for instructed in _with_instruction(messages, instruction):
        try:
            text = _render(tokenizer, instructed, tools, for_answer=True)
        except TemplateRefuses as error:
            what = error.what
            continue
        if instruction.strip() in text:  # some templates skip what they do not know without a word
            return text
    fix = "leave it out, or write it into the prompts"
    raise UserError("sampling.instruction", what, fix)


def conversation_text(tokenizer, prompt: Prompt, text: str, calls: str | None = None) -> tuple[str, str]:
    """(prompt and answer as a chat template writes them, up to the end of the turn; that end, empty if there is none).

    `calls`: JSON of the answer's tool calls. Raises ValueError if the template ends this answer otherwise than others.
    """
    messages, tools = _messages(tokenizer, prompt)
    answer = {"role": "assistant", "content": text} | ({"tool_calls": json.loads(calls)} if calls else {})
    rendered = _render(tokenizer, [*messages, answer], tools)
    tail, end = _turn_end(tokenizer, str(tokenizer.chat_template))
    if not rendered.endswith(tail):
        raise ValueError("the chat template ends this answer otherwise than others")
    return rendered.removesuffix(tail) + end, end


def turn_end(tokenizer) -> str:
    """What the chat template ends an answer with; empty if that holds no special token."""
    return _turn_end(tokenizer, str(tokenizer.chat_template))[1]


@functools.lru_cache(maxsize=8)
def _turn_end(tokenizer, template: str) -> tuple[str, str]:
    """(all that the template writes behind an answer, the part of it up to the first special token).

    The part is empty if there is no special token. `template` only tells templates of one tokenizer apart.
    """
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": _PROBE}]
    tail = _render(tokenizer, messages).rpartition(_PROBE)[2]
    # the end of a turn need not be among the named tokens: Llama 3 ends it with <|eot_id|>, a text with another
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = [(tail.index(token), len(token)) for token in added.union(tokenizer.all_special_tokens) if token in tail]
    start, length = min(found, key=lambda place: (place[0], -place[1]), default=(0, 0))
    return tail, tail[: start + length]


def _messages(tokenizer, prompt: Prompt) -> tuple[list[dict], list[dict] | None]:
    """(messages as templates take them, tools or None)"""
    if tokenizer.chat_template is None:
        fix = "use an instruction-tuned model, or give prompts as plain text"
        raise UserError("data", "prompts are chat messages, but the model has no chat template", fix)
    messages, tools = split_tools((("user", prompt),) if isinstance(prompt, str) else prompt)
    return [as_dict(message) for message in messages], tools


def _with_instruction(messages: list[dict[str, str]], instruction: str) -> list[list[dict[str, str]]]:
    """The ways to say it, best first: in the system message, before the first user message."""

    def before(index: int) -> list[dict[str, str]]:
        joined = {**messages[index], "content": f"{instruction}\n\n{messages[index]['content']}"}
        return [*messages[:index], joined, *messages[index + 1 :]]

    if messages[0]["role"] == "system":
        return [before(0)]
    ways = [[{"role": "system", "content": instruction}, *messages]]
    return ways + [before(index) for index, message in enumerate(messages) if message["role"] == "user"][:1]


def _render(tokenizer, messages: list[dict], tools: list[dict] | None = None, *, for_answer: bool = False) -> str:
    from jinja2 import TemplateError  # transformers imports it late, too

    try:
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=for_answer)
        _check_shown(text, messages, tools)
        return text
    except (TemplateError, TypeError) as error:  # Mistral's and Gemma's on a system message, or on roles out of turn
        has_system = any(message["role"] == "system" for message in messages)
        way_out = "put the system message into the user's" if has_system else "let user and assistant take turns"
        fix = f"{way_out}, use another model, or leave such rows out with data.on_bad_rows: skip"
        raise TemplateRefuses(
            "data", f"the model's chat template refuses it: {shorten(str(error), 120)}", fix
        ) from None


def _check_shown(text: str, messages: list[dict], tools: list[dict] | None) -> None:
    """Raises TemplateRefuses if tools or calls are left out: templates skip without a word what they do not know."""
    calls = [call.get("function", call) for message in messages for call in message.get("tool_calls", ())]
    for kind, named in (("tools", [tool.get("function", tool) for tool in tools or ()]), ("tool calls", calls)):
        if any(str(one.get("name", "")) not in text for one in named if isinstance(one, dict)):
            fix = "use a model trained on tools, or leave such rows out with data.on_bad_rows: skip"
            raise TemplateRefuses("data", f"the model's chat template leaves {kind} out", fix)
