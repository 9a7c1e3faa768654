"""From the scores of several judges to one label a step, and how good a judge is by labels of people.

BCPG-NSA (arXiv 2505.14403): a step of a wrong answer counts as right only if all judges say so.
ProcessBench (arXiv 2412.06559): the first wrong step is to be found, or that there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from align.judges import Scores


def labels(scores: Mapping[str, Scores], good: Mapping[str, float], count: int) -> list[int | None]:
    """The label of each of `count` steps: 1 all judges say it is right, -1 one says wrong, None not known.

    `scores`: judge -> a score a step. `good`: judge -> the least score that means right.
    """
    found: list[int | None] = []
    for step in range(count):
        votes = [None if own[step] is None else own[step] >= good[name] for name, own in scores.items()]
        found.append(-1 if False in votes else None if None in votes or not votes else 1)
    return found


def first_error(verdicts: Sequence[float | None], good: float) -> int | None:
    """The index of the first step with a score below `good`; -1: there is none, None: an earlier one has no score."""
    for index, score in enumerate(verdicts):
        if score is None:
            return None
        if score < good:
            return index
    return -1


def first_marked(step_labels: Sequence[int | None]) -> int | None:
    """The first step labelled -1; -1 if all are good; None if neither is known."""
    if -1 in step_labels:
        return step_labels.index(-1)
    return -1 if step_labels and None not in step_labels else None


def process_bench(found: Sequence[int | None], wanted: Sequence[int]) -> dict[str, float | int | None]:
    """ProcessBench's accuracies and F1 (their harmonic mean) over answers; no opinion counts as a miss."""
    hits = [mine == right for mine, right in zip(found, wanted, strict=True)]
    wrong = [hit for hit, right in zip(hits, wanted, strict=True) if right >= 0]
    sound = [hit for hit, right in zip(hits, wanted, strict=True) if right < 0]
    on_wrong = sum(wrong) / len(wrong) if wrong else None
    on_sound = sum(sound) / len(sound) if sound else None
    both = (on_wrong or 0) + (on_sound or 0)
    f1 = None if None in (on_wrong, on_sound) else 2 * on_wrong * on_sound / both if both else 0.0
    return {
        "answers_with_error": len(wrong), "first_error_accuracy": on_wrong,
        "answers_without_error": len(sound), "accuracy_without_error": on_sound,
        "f1": f1, "no_opinion": sum(mine is None for mine in found),
    }  # fmt: skip


def step_quality(scores: Sequence[Scores], known: Sequence[Sequence[int | None]], good: float) -> dict:
    """Of the steps with a label and a score: precision and recall of "right", accuracy, and how many there are."""
    pairs = [
        (score >= good, label == 1)
        for own, marks in zip(scores, known, strict=True)
        for score, label in zip(own, marks, strict=True)
        if score is not None and label is not None
    ]
    said, true = sum(one for one, _ in pairs), sum(one for _, one in pairs)
    both = sum(one and other for one, other in pairs)
    return {
        "steps": len(pairs),
        "accuracy": sum(one == other for one, other in pairs) / len(pairs) if pairs else None,
        "precision": both / said if said else None,
        "recall": both / true if true else None,
    }
