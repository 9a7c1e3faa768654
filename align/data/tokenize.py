"""Records to tokens: prompt ids, and for each response the ids the policy is scored on.

The response begins where the rendered conversation stops agreeing with the rendered prompt (their common
prefix), and ends with the template's end-of-turn token (`align.data.templates`).
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Sequence
from dataclasses import dataclass

from align.data.examples import Example, Prompt, Response
from align.data.ledger import Ledger
from align.data.templates import TemplateRefuses, conversation_text, prompt_text, turn_end
from align.errors import UserError

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
    rendered, end = conversation_text(tokenizer, prompt, text, calls)
    return rendered, len(prompt_ids), end


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
