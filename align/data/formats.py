"""Every foreign format mapped onto the record of `examples.py`.

The words of other data sets ("chosen", "rejected", "completion", "label", "conversations") exist only here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from align.data.examples import (
    Message,
    Prompt,
    Response,
    RowError,
    Step,
    behind,
    kind_of,
    read_number,
    read_steps,
    read_text,
)
from align.data.messages import ASSISTANT, calls_of, read_messages, read_prompt


def find_reader(row: dict) -> Callable[[dict], tuple[Prompt, list[Response]]] | None:
    """The function that reads rows with these keys, or None if no format has them."""
    return next((read for needed, read in _FORMATS if needed <= row.keys()), None)


def _pair(row: dict) -> tuple[Prompt, list[Response]]:
    chosen, rejected = ([side] if isinstance(side, dict) else side for side in (row["chosen"], row["rejected"]))
    name = next((name for name in _PROMPTS if row.get(name) is not None), "prompt")
    given = row.get(name)
    in_both = given is None or given == ""  # the dialogue may stand in front of both answers
    if name in ("question", "instruction"):
        given = _asked(row, name)
    if isinstance(chosen, list) and isinstance(rejected, list):
        prompt = None if in_both else read_prompt(given, name)
        prompt, pair = _message_pair(prompt, read_messages(chosen, "chosen"), read_messages(rejected, "rejected"))
        return prompt, _scored(row, pair)
    chosen, rejected = read_text(chosen, "chosen"), read_text(rejected, "rejected")
    if in_both:  # as in Anthropic's files: it ends where the last answer begins
        cut = min(chosen.rfind(ASSISTANT), rejected.rfind(ASSISTANT)) + len(ASSISTANT)
        is_dialogue = cut >= len(ASSISTANT) and chosen[:cut] == rejected[:cut]
        if given is None and not is_dialogue:
            raise RowError("has no prompt, and 'chosen' and 'rejected' do not begin with the same dialogue")
        if is_dialogue:
            given, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
    prompt = read_prompt(given, name)
    responses = [
        Response(read_text(chosen, "chosen"), "positive"),
        Response(read_text(rejected, "rejected"), "negative"),
    ]
    return prompt, _scored(row, behind(prompt, given, responses))


_SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))  # as common sets name them


def _scored(row: dict, pair: list[Response]) -> list[Response]:
    """The positive and the negative with their scores as rewards, where the row has both."""
    for names in _SCORES:
        if all(row.get(name) is not None for name in names):
            scores = [read_number(row[name], name) for name in names]
            return [dataclasses.replace(response, reward=score) for response, score in zip(pair, scores, strict=True)]
    return pair


def _message_pair(prompt: Prompt | None, chosen: tuple, rejected: tuple) -> tuple[Prompt, list[Response]]:
    if prompt is not None:
        messages = (("user", prompt),) if isinstance(prompt, str) else prompt
        if chosen[: len(messages)] == messages == rejected[: len(messages)]:  # some files repeat the prompt in both
            chosen, rejected = chosen[len(messages) :], rejected[len(messages) :]
    else:
        messages = chosen[:-1]
        chosen, rejected = chosen[-1:], rejected[len(messages) :] if rejected[:-1] == messages else ()
    if not messages or any(len(side) != 1 or side[0][0] != "assistant" for side in (chosen, rejected)):
        raise RowError("'chosen' and 'rejected' must be the same prompt with one assistant message each")
    return messages, [_answer(chosen[0], "positive"), _answer(rejected[0], "negative")]


_PROMPTS = ("prompt", "conversations", "question", "instruction")  # how common sets of pairs call it


def _asked(row: dict, name: str) -> str | list[dict]:
    """The prompt of rows with a question or an instruction, its input, and a system message."""
    text = read_text(row[name], name)
    if row.get("input") not in (None, ""):
        text = f"{text}\n\n{read_text(row['input'], 'input')}"
    if row.get("system") in (None, ""):
        return text
    return [{"role": "system", "content": read_text(row["system"], "system")}, {"role": "user", "content": text}]


def _answer(message: Message, role: str) -> Response:
    """The response that an assistant message is."""
    return Response(message[1], role, calls=calls_of(message))


def _labelled(row: dict) -> tuple[Prompt, list[Response]]:
    """A completion with a label; without one it is a positive."""
    role = _role(row["label"]) if "label" in row else "positive"
    completion = row["completion"]
    prompt = read_prompt(row.get("prompt"))
    if isinstance(completion, list):
        messages = read_messages(completion, "completion")
        if len(messages) != 1 or messages[0][0] != "assistant":
            raise RowError("'completion' must be one assistant message")
        response = _answer(messages[0], role)
    else:
        response = Response(read_text(completion, "completion"), role)
    return prompt, behind(prompt, row["prompt"], [response])


def _role(label: object) -> str:
    if not isinstance(label, bool) and label not in (0, 1):
        raise RowError(f"'label' is {label!r}, not true or false")
    return "positive" if label else "negative"


def _stepwise(row: dict) -> tuple[Prompt, list[Response]]:
    """`completions` are the steps of one response, `labels` say which are right."""
    for key in ("completions", "labels"):
        if not isinstance(row[key], list):
            raise RowError(f"{key!r} is {kind_of(row[key])}, not a list")
    texts = [read_text(text, f"completions[{index}]") for index, text in enumerate(row["completions"])]
    labels = row["labels"]
    if len(labels) != len(texts) or not all(isinstance(label, bool) or label in (0, 1) for label in labels):
        raise RowError(f"'labels' is not a list of true or false, one for each of the {len(texts)} completions")
    steps, end = [], 0
    for text, label in zip(texts, labels, strict=True):
        end += len(text) + (end > 0)  # 1 for the line break between two steps
        steps.append(Step(end, 1 if label else -1))
    role = "positive" if all(labels) else "negative"
    prompt = read_prompt(row.get("prompt"))
    responses = [Response("\n".join(texts), role, steps=tuple(steps))] if texts else []
    return prompt, behind(prompt, row["prompt"], responses)


def _lists(row: dict) -> tuple[Prompt, list[Response]]:
    responses = []
    for key, role, steps_key in (("positives", "positive", "pos_steps"), ("negatives", "negative", "neg_steps")):
        texts = row.get(key) or []
        if not isinstance(texts, list):
            raise RowError(f"{key!r} is {kind_of(texts)}, not a list of texts")
        judged = row.get(steps_key) or [None] * len(texts)
        if not isinstance(judged, list) or len(judged) != len(texts):
            raise RowError(f"{steps_key!r} is not a list with one entry for each of {key!r}")
        for index, (text, steps) in enumerate(zip(texts, judged, strict=True)):
            text = read_text(text, f"{key}[{index}]")
            responses.append(Response(text, role, steps=_columns(steps, len(text), f"{steps_key}[{index}]")))
    prompt = read_prompt(row.get("prompt"))
    return prompt, behind(prompt, row["prompt"], responses)


def _columns(steps: object, length: int, here: str) -> tuple[Step, ...]:
    """Steps given as two parallel lists; null where a response has none."""
    if steps is None:
        return ()
    ends, labels = (steps.get("ends"), steps.get("labels")) if isinstance(steps, dict) else (None, None)
    if not isinstance(ends, list) or not isinstance(labels, list) or len(ends) != len(labels):
        raise RowError(f"{here} is not two lists of one length, ends and labels")
    items = [{"end": end, "label": label} for end, label in zip(ends, labels, strict=True)]
    return read_steps(items, length, here)


def _dialogue(row: dict) -> tuple[Prompt, list[Response]]:
    """The last answer is the response, what stands before it the prompt; turns behind it are left out."""
    name = "messages" if "messages" in row else "conversations"
    if not isinstance(row[name], list):
        raise RowError(f"{name!r} is {kind_of(row[name])}, not a list")
    messages = read_messages(row[name], name)
    answers = [index for index, message in enumerate(messages) if message[0] == "assistant"]
    if not answers or all(message[0] != "user" for message in messages[: answers[-1]]):
        raise RowError(f"{name!r} has no answer of the assistant to a user's turn")
    role = "positive" if row.get("label") is None else _role(row["label"])
    return messages[: answers[-1]], [_answer(messages[answers[-1]], role)]


def _alpaca(row: dict) -> tuple[Prompt, list[Response]]:
    prompt = read_prompt(_asked(row, "instruction"), "instruction")
    role = "positive" if row.get("label") is None else _role(row["label"])
    return prompt, [Response(read_text(row["output"], "output"), role)]


def _answered(row: dict) -> tuple[Prompt, list[Response]]:
    """A question with its right answer, a text or a number."""
    name = next((name for name in ("prompt", "question") if row.get(name) is not None), "prompt")
    answer = row["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    prompt = read_prompt(_asked(row, name) if name == "question" else row.get(name), name)
    return prompt, behind(prompt, row[name], [Response(read_text(answer, "answer"), "positive")])


# Keys a row must have -> how it is read; the first match wins.
_FORMATS = (
    ({"chosen", "rejected"}, _pair),
    ({"completions", "labels"}, _stepwise),
    ({"completion"}, _labelled),
    ({"positives"}, _lists),
    ({"negatives"}, _lists),
    ({"messages"}, _dialogue),
    ({"conversations"}, _dialogue),
    ({"instruction", "output"}, _alpaca),
    ({"answer"}, _answered),
)
