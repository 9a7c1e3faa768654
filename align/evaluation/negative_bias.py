"""Negative bias: does a model lean to "no", whatever the question?

https://arxiv.org/abs/2408.00137 (Yu et al., 2025). On as many questions whose answer is yes as whose answer is no: the
precision of "yes" less its recall, above 0 for a lean to "no", below for one to "yes". Asked with both orders of the
options, also as True and False, and also with "I don't know" to choose (https://arxiv.org/abs/2511.10881): there a
question that is not answered counts as not said yes to. The option with the highest log-prob, end of turn included, is
the answer; a tie is none.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from align.data.examples import Example, Prompt, Response
from align.data.ledger import Ledger
from align.evaluation import figures
from align.evaluation.probe import SUM, Options, Probe, unusable
from align.evaluation.rows import Rows

WORDS = (("Yes", "No"), ("True", "False"))
UNSURE = "I don't know"
NEEDS = "rows whose answers are yes and no, some of each"
_YES, _NO = {"yes", "true"}, {"no", "false"}


def answer_of(example: Example) -> bool | None:
    """Whether the right answer is yes; None if the row is no question of yes or no."""
    right, wrong = ({_plain(text) for text in example.texts(role)} for role in ("positive", "negative"))
    if right and wrong and right <= _YES and wrong <= _NO:
        return True
    return False if right and wrong and right <= _NO and wrong <= _YES else None


def evaluate(probe: Probe, rows: Rows) -> dict:
    """Bias, precision, recall and accuracy in each setting. Raises UserError without questions of both answers."""
    examples, metrics = balanced(rows.examples, rows.ledger, rows.where), {}
    for words, is_turned, with_unsure in itertools.product(WORDS, (False, True), (False, True)):
        named = words[::-1] if is_turned else words
        setting = _listed([*named, UNSURE] if with_unsure else list(named))
        asked = [_asked(example, words, setting, with_unsure) for example in examples]
        ledger = Ledger()
        options = probe.options(asked, ledger, rows.where, NEEDS)
        rows.ledger.merge(ledger, f"{setting}: ")
        metrics |= {f"{name}: {setting}": own for name, own in _of_setting(probe, options).items()}
    rows.ledger.used = len(examples)
    order = ("bias", "log-odds of no", "precision of yes", "recall of yes", "said yes", "accuracy", "unsure")
    ordered = {key: metrics[key] for name in order for key in metrics if key.startswith(f"{name}: ")}
    return {"questions": len(examples), "metrics": ordered}


def balanced(examples: Sequence[Example], ledger: Ledger, where: str) -> list[Example]:
    """As many questions of either answer, those of the more frequent one chosen by hash. Raises UserError."""
    kinds: dict[bool, list[Example]] = {True: [], False: []}
    for example in examples:
        answer = answer_of(example)
        if answer is None:
            ledger.drop("no question of yes or no", example.place)
        else:
            kinds[answer].append(example)
    count = min(map(len, kinds.values()))
    if not count:
        raise unusable(ledger, where, NEEDS)
    found = []
    for own in kinds.values():
        own.sort(key=lambda one: hashlib.sha256(f"{one.key}{one.place}".encode()).digest())
        for example in own[count:]:
            ledger.drop("left out: one answer has more questions than the other", example.place)
        found += own[:count]
    return found


def said(options: Options, weights: dict[str, float]) -> np.ndarray:
    """(N,) which option is chosen, by its number: 0 yes, 1 no, 2 unsure; -1 for a tie of the best."""
    scores = np.stack(options.scores(weights, SUM))  # (N, 2 or 3)
    is_tied = (scores == scores.max(-1, keepdims=True)).sum(-1) > 1
    return np.where(is_tied, -1, scores.argmax(-1))


def _of_setting(probe: Probe, options: Options) -> dict[str, dict]:
    """{metric: {model: figure}}; questions whose answer is yes and those whose answer is no are resampled apart."""
    is_yes = np.array([bool(right[0]) for right in options.is_right])
    choices = {name: said(options, weights) for name, weights in probe.subject.scores.items()}
    groups = {
        name: [np.stack([own[kind] == 0, own[kind] == 1], -1).astype(float) for kind in (is_yes, ~is_yes)]
        for name, own in choices.items()
    }  # of the questions of either answer: said yes, said no
    found = {
        "bias": figures.figures(lambda yes, no: _precision(yes, no) - yes[..., 0], groups),
        "log-odds of no": figures.means(
            {
                name: np.array([own[1] - own[0] for own in options.scores(weights, SUM)])
                for name, weights in probe.subject.scores.items()
            }
        ),
        "precision of yes": figures.figures(_precision, groups),
        "recall of yes": figures.shares({name: own[is_yes] == 0 for name, own in choices.items()}),
        "said yes": figures.shares({name: own == 0 for name, own in choices.items()}),
        "accuracy": figures.shares({name: own == np.where(is_yes, 0, 1) for name, own in choices.items()}),
    }
    if len(options.is_right[0]) > 2:
        found["unsure"] = figures.shares({name: own == 2 for name, own in choices.items()})
    return found


def _precision(yes: np.ndarray, no: np.ndarray) -> np.ndarray:
    """Of as many questions of either answer; nan where yes is never said."""
    return yes[..., 0] / (yes[..., 0] + no[..., 0])


def _asked(example: Example, words: tuple[str, str], setting: str, with_unsure: bool) -> Example:
    """The question with the options behind it, which are answered by (yes, no) and, where asked, unsure."""
    right = 0 if answer_of(example) else 1
    texts = [*words, UNSURE] if with_unsure else words
    responses = [Response(text, "positive" if index == right else "negative") for index, text in enumerate(texts)]
    return dataclasses.replace(example, prompt=behind(example.prompt, f"Answer {setting}."), responses=tuple(responses))


def behind(prompt: Prompt, line: str) -> Prompt:
    """The prompt with one more line at its end."""
    if isinstance(prompt, str):
        return f"{prompt}\n{line}"
    role, content, *more = prompt[-1]
    return (*prompt[:-1], (role, f"{content}\n{line}", *more))


def _listed(options: list[str]) -> str:
    return f"{', '.join(options[:-1])} or {options[-1]}"


def _plain(text: str) -> str:
    return text.strip().rstrip(".!").casefold()
