"""Records to tokens: prompt ids, and for each response the ids the policy is scored on.

The response begins where the rendered conversation stops agreeing with the rendered prompt (their common
prefix), and ends with the template's end-of-turn token; what a template adds behind that token (a newline, say)
is never generated and never scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from align.data.examples import Example, Prompt
from align.data.sources import Ledger
from align.errors import UserError

ROLE_NUMBERS = {"positive": 1, "sample": 0, "negative": -1}


@dataclass(frozen=True)
class TokenizedResponse:
    ids: tuple[int, ...]  # response tokens, end-of-turn included where the response is complete
    role: int  # 1 positive, 0 sample, -1 negative
    weight: float = 1.0
    reward: float | None = None


@dataclass(frozen=True)
class TokenizedRow:
    """One prompt with its responses, in tokens."""

    prompt_ids: tuple[int, ...]
    responses: tuple[TokenizedResponse, ...]
    example: Example
    retain: bool = False  # a row of the retain term: no objective sees it

    def lengths(self) -> list[int]:
        """Prompt plus response, in tokens, for each response."""
        return [len(self.prompt_ids) + len(response.ids) for response in self.responses]


class PromptTooLong(ValueError):
    """The prompt leaves no room for a response."""


def prompt_text(tokenizer, prompt: Prompt, instruction: str | None = None) -> str:
    """The prompt as the model reads it, up to where its answer begins.

    `instruction` goes into the system message (in front of one that is there); for plain text, or a model
    without a chat template, it is a paragraph before the prompt.
    """
    if isinstance(prompt, str) and tokenizer.chat_template is None:
        return f"{instruction}\n\n{prompt}" if instruction else prompt
    return tokenizer.apply_chat_template(
        _messages(tokenizer, prompt, instruction), tokenize=False, add_generation_prompt=True
    )


def _messages(tokenizer, prompt: Prompt, instruction: str | None = None) -> list[dict[str, str]]:
    if tokenizer.chat_template is None:
        fix = "use an instruction-tuned model, or give prompts as plain text"
        raise UserError("data", "prompts are chat messages, but the model has no chat template", fix)
    messages = [("user", prompt)] if isinstance(prompt, str) else list(prompt)
    if instruction:
        if messages[0][0] == "system":
            messages[0] = ("system", f"{instruction}\n\n{messages[0][1]}")
        else:
            messages.insert(0, ("system", instruction))
    return [{"role": role, "content": content} for role, content in messages]


def encode_prompt(tokenizer, prompt: Prompt, instruction: str | None = None) -> list[int]:
    """Token ids of the prompt; a template writes its own BOS, plain text gets the tokenizer's."""
    text = prompt_text(tokenizer, prompt, instruction)
    return tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]


def encode_response(tokenizer, prompt: Prompt, prompt_ids: Sequence[int], text: str) -> list[int]:
    """Token ids of a complete response to `prompt`, its end-of-turn token included.

    Raises ValueError if the template renders the prompt otherwise once an answer follows, so that the
    response's first tokens cannot be told from the prompt's last.
    """
    if isinstance(prompt, str) and tokenizer.chat_template is None:
        return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    messages = [*_messages(tokenizer, prompt), {"role": "assistant", "content": text}]
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    if list(ids[: len(prompt_ids)]) != list(prompt_ids):
        raise ValueError("the chat template renders the prompt differently before an answer")
    return _cut_after_end_of_turn(tokenizer, ids[len(prompt_ids) :], text)


def _cut_after_end_of_turn(tokenizer, ids: list[int], text: str) -> list[int]:
    """Drops what the template writes behind the end-of-turn token; appends EOS if it writes none."""
    content = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    special = set(tokenizer.all_special_ids)
    for index in range(max(content - 2, 0), len(ids)):  # -2: merges at the seams may shorten the content
        if ids[index] in special:
            return list(ids[: index + 1])
    return [*ids, tokenizer.eos_token_id]


def encode_row(tokenizer, example: Example, *, roles: set[int], max_length: int, ledger: Ledger) -> TokenizedRow:
    """Tokens of one record, of the responses in `roles` only. Longer responses are cut and counted.

    Raises PromptTooLong if nothing of a response fits behind the prompt.
    """
    prompt_ids = encode_prompt(tokenizer, example.prompt)
    room = max_length - len(prompt_ids)
    if room < 1:
        raise PromptTooLong(f"{len(prompt_ids)} tokens of prompt, data.max_length is {max_length}")
    responses = []
    for response in example.responses:
        role = ROLE_NUMBERS[response.role]
        if role not in roles:
            ledger.drop(f"response unused: {response.role}", example.place)
            continue
        try:
            ids = encode_response(tokenizer, example.prompt, prompt_ids, response.text)
        except ValueError:
            ledger.drop("response dropped: prompt boundary unclear", example.place)
            continue
        if len(ids) > room:
            ledger.drop("response truncated", example.place)
            ids = ids[:room]
        responses.append(TokenizedResponse(tuple(ids), role, response.weight, response.reward))
    return TokenizedRow(tuple(prompt_ids), tuple(responses), example)
