"""NAT: Negative-Aware Training (Wang et al., 2024), https://arxiv.org/abs/2402.11651: the label goes into the prompt.

Every response becomes something to imitate, behind a prompt that says how good it is; the loss is plain `nll`.
NAT-2 grades by reward instead of right and wrong. At inference the prompt of success stands in front.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from align.data.examples import Example, Prompt, Response

if TYPE_CHECKING:
    from align.data.options import Nat


def under_labels(example: Example, nat: Nat) -> list[Example]:
    """The record once for each label its responses have, with those responses as positives; samples are left out.

    Raises ValueError if the labels are graded and a response has no reward, or one below the lowest grade.
    """
    by_label: dict[str, list[Response]] = {}
    for response in example.responses:
        if response.role != "sample":
            imitated = dataclasses.replace(response, role="positive")
            by_label.setdefault(_label(response, nat), []).append(imitated)
    return [
        dataclasses.replace(example, prompt=labelled(example.prompt, label), responses=tuple(responses))
        for label, responses in by_label.items()
    ]


def inference_label(nat: Nat) -> str:
    """What stands in front of the prompt when the model is used: the label of success, or of the highest grade."""
    return max(nat.grades, key=lambda grade: grade.reward).prompt if nat.grades else nat.success


def labelled(prompt: Prompt, label: str) -> Prompt:
    """The prompt with the label in front of the first thing the user says."""
    if isinstance(prompt, str):
        return f"{label}\n\n{prompt}"
    first = next((index for index, message in enumerate(prompt) if message[0] == "user"), len(prompt) - 1)
    role, content, *more = prompt[first]
    return (*prompt[:first], (role, f"{label}\n\n{content}", *more), *prompt[first + 1 :])


def _label(response: Response, nat: Nat) -> str:
    if not nat.grades:
        return nat.success if response.role == "positive" else nat.failure
    if response.reward is None:
        raise ValueError("a response has no reward to grade it by")
    reached = [grade for grade in nat.grades if response.reward >= grade.reward]
    if not reached:
        raise ValueError(f"a reward of {response.reward:g} is below the lowest grade")
    return max(reached, key=lambda grade: grade.reward).prompt
