"""Records to tokens: prompt ids, and for each response the ids the policy is scored on.

The response begins where the rendered conversation stops agreeing with the rendered prompt (their common
prefix), and ends with the template's end-of-turn token; what a template adds behind that token (a newline, say)
is never generated and never scored. Which token that is, a probe tells: what the template writes behind an answer.
"""

from __future__ import annotations

import bisect
import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.examples import Example, Prompt, Response
from align.data.ledger import Ledger
from align.data.messages import as_dict, split_tools
from align.errors import UserError, shorten

_PROBE = "Answer7391"  # occurs in no template

ROLE_NUMBERS = {"positive": 1, "sample": 0, "negative": -1}
ROLE_NAMES = {number: name for name, number in ROLE_NUMBERS.items()}


@dataclass(frozen=True)
class TokenizedResponse:
    ids: tuple[int, ...]  # response tokens, end-of-turn included where the response is complete
    role: int  # 1 positive, 0 sample, -1 negative
    weight: float = 1.0
    reward: float | None = None
    step_labels: tuple[int, ...] | None = None  # of each token: 1 good, -1 bad, 0 unjudged; None: no step was judged
    behavior_logps: tuple[float, ...] | None = None  # of each token, under the policy that wrote the response
    token_weights: tuple[float, ...] | None = None  # of each token; None: they weigh 1


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

    def roles(self) -> list[str]:
        """The name of the role of each response."""
        return [ROLE_NAMES[response.role] for response in self.responses]


class PromptTooLong(ValueError):
    """The prompt leaves no room for a response."""


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


def encode_prompt(tokenizer, prompt: Prompt, instruction: str | None = None) -> list[int]:
    """Token ids of the prompt; a template writes its own BOS, plain text gets the tokenizer's.

    At least one: something must stand in front of the first token of an answer.
    """
    text = prompt_text(tokenizer, prompt, instruction)
    bare = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.chat_template is not None:
        return bare
    ids = tokenizer(text)["input_ids"]
    # some tokenizers write EOS behind every text; it would end what is about to be answered
    ends = (start + len(bare) for start in range(len(ids)) if bare and ids[start : start + len(bare)] == bare)
    empty = [tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id]  # as GPT-2 begins
    return ids[: next(ends, len(ids))] or empty


def encode_response(
    tokenizer, prompt: Prompt, prompt_ids: Sequence[int], text: str, calls: str | None = None
) -> list[int]:
    """Token ids of a complete response to `prompt`, its end-of-turn token included; `calls`: JSON of its tool calls.

    Raises ValueError if the template renders the prompt otherwise once an answer follows, so that the
    response's first tokens cannot be told from the prompt's last.
    """
    rendered, first, end = _rendered_response(tokenizer, prompt, prompt_ids, text, calls)
    ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    if list(ids[:first]) != list(prompt_ids)[:first]:
        raise ValueError("the chat template renders the prompt differently before an answer")
    return [*ids[first:], *([] if end else [tokenizer.eos_token_id])]


def _rendered_response(
    tokenizer, prompt: Prompt, prompt_ids: Sequence[int], text: str, calls: str | None = None
) -> tuple[str, int, str]:
    """(what is tokenised, how many of its tokens are the prompt's, the end of the turn that it ends with, if any)."""
    if isinstance(prompt, str) and tokenizer.chat_template is None:
        return text, 0, ""
    messages, tools = _messages(tokenizer, prompt)
    answer = {"role": "assistant", "content": text} | ({"tool_calls": json.loads(calls)} if calls else {})
    rendered = _render(tokenizer, [*messages, answer], tools)
    tail, end = _turn_end(tokenizer, str(tokenizer.chat_template))
    if not rendered.endswith(tail):
        raise ValueError("the chat template ends this answer otherwise than others")
    return rendered.removesuffix(tail) + end, len(prompt_ids), end


def step_labels(
    tokenizer, prompt: Prompt, prompt_ids: Sequence[int], response: Response, count: int
) -> tuple[int, ...] | None:
    """The label of each of the `count` tokens of an encoded response; None if none of its steps is judged.

    A token belongs to the step its first character is in (spaces in front of a word do not count); the
    end-of-turn token and what stands behind the last step are unjudged.

    Raises ValueError if the template changes more of the answer than the spaces around it, and UserError if the
    tokenizer does not tell which characters a token stands for.
    """
    if not any(step.label for step in response.steps):
        return None
    if not tokenizer.is_fast:
        fix = "use a model with a fast tokenizer, or leave 'steps' out of the rows"
        raise UserError("data", "steps are judged, but this tokenizer does not tell where its tokens begin", fix)
    rendered, first, turn_end = _rendered_response(tokenizer, prompt, prompt_ids, response.text, response.calls)
    until, stripped = len(rendered) - len(turn_end), response.text.strip()  # templates may trim an answer
    written = rendered[:until].rstrip()
    if not written.endswith(stripped):
        raise ValueError("the chat template writes this answer otherwise than it was given")
    begin = len(written) - len(stripped) - response.text.index(stripped)
    offsets = tokenizer(rendered, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"][first:]
    ends, labels = [step.end for step in response.steps], []
    for start, end in offsets:
        piece = rendered[start:end]
        place = start + len(piece) - len(piece.lstrip()) - begin if piece.strip() else start - begin
        index = bisect.bisect_right(ends, place)
        is_in_step = 0 <= place and start < until and index < len(ends)
        labels.append((response.steps[index].label or 0) if is_in_step else 0)
    return tuple([*labels, *[0] * count][:count])


_NUMBERS: dict[int, int] = {}


def _compact(ids: Sequence[int]) -> tuple[int, ...]:
    """Token ids that share their numbers with all others: 8 bytes a token where Python would take 36."""
    return tuple([_NUMBERS.setdefault(token, token) for token in ids])


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


def _count_token_problems(tokenizer, example: Example, prompt_ids: Sequence[int], ledger: Ledger) -> None:
    """Counts what is wrong with the special tokens of a row; it is used all the same."""
    if has_double_bos(tokenizer, prompt_ids):
        ledger.drop("BOS written twice: by the template or the text, and by the tokenizer", example.place)
    if lacks_bos(tokenizer, prompt_ids):
        ledger.drop("BOS missing: the tokenizer begins texts with it, the chat template does not", example.place)
    if tokenizer.chat_template is not None and not turn_end(tokenizer):
        ledger.drop("EOS put behind answers: the chat template writes none", example.place)
    prompt = [example.prompt] if isinstance(example.prompt, str) else [message[1] for message in example.prompt]
    texts = [*prompt, *(response.text for response in example.responses)]
    if any(token in text for token in _special_tokens(tokenizer) for text in texts):
        ledger.drop("special token spelled in a text", example.place)


def has_double_bos(tokenizer, prompt_ids: Sequence[int]) -> bool:
    return tokenizer.bos_token_id is not None and list(prompt_ids[:2]) == [tokenizer.bos_token_id] * 2


def lacks_bos(tokenizer, prompt_ids: Sequence[int]) -> bool:
    return _begins_texts(tokenizer) and prompt_ids[0] != tokenizer.bos_token_id


@functools.lru_cache(maxsize=8)
def _begins_texts(tokenizer) -> bool:
    """Whether the tokenizer puts its BOS in front of a text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


@functools.lru_cache(maxsize=8)
def _special_tokens(tokenizer) -> tuple[str, ...]:
    return tuple(token for token in tokenizer.all_special_tokens if token)


def encode_row(tokenizer, example: Example, *, roles: set[int], max_length: int, ledger: Ledger) -> TokenizedRow:
    """Tokens of one record, of the responses in `roles` only. Longer responses are cut and counted.

    Raises PromptTooLong if nothing of a response fits behind the prompt, TemplateRefuses if the template does.
    """
    try:
        prompt_ids = encode_prompt(tokenizer, example.prompt)
    except TemplateRefuses as error:
        raise TemplateRefuses(example.place, error.what, error.fix) from None
    room = max_length - len(prompt_ids)
    if room < 1:
        raise PromptTooLong(f"{len(prompt_ids)} tokens of prompt, data.max_length is {max_length}")
    _count_token_problems(tokenizer, example, prompt_ids, ledger)
    responses = []
    for response in example.responses:
        role = ROLE_NUMBERS[response.role]
        if role not in roles:
            ledger.drop(f"response unused: {response.role}", example.place)
            continue
        try:
            ids = encode_response(tokenizer, example.prompt, prompt_ids, response.text, response.calls)
        except ValueError:
            ledger.drop("response dropped: prompt boundary unclear", example.place)
            continue
        behavior = response.behavior_logps
        if behavior is not None and len(behavior) != len(ids):  # another tokenizer, or another end of the turn
            ledger.drop("behavior_logps unused: not one for each token", example.place)
            behavior = None
        if len(ids) > room:
            ledger.drop("response truncated", example.place)
            ids = ids[:room]
        try:
            labels = step_labels(tokenizer, example.prompt, prompt_ids, response, len(ids))
        except ValueError:
            ledger.drop("steps unused: the chat template changes the answer", example.place)
            labels = None
        behavior = None if behavior is None else behavior[: len(ids)]
        responses.append(TokenizedResponse(_compact(ids), role, response.weight, response.reward, labels, behavior))
    return TokenizedRow(_compact(prompt_ids), tuple(responses), example)
