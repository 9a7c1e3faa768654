"""Tasks of EleutherAI's lm-evaluation-harness on the base and the policy of a run (the extra `lm-eval`).

The models are loaded as for any other measure and handed over. Metrics that are a mean over documents come with
intervals and with the difference to the base, document by document; of others there is the value alone.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from align.errors import UserError, shorten
from align.evaluation import figures
from align.evaluation.probe import as_head
from align.evaluation.subject import Subject

BATCH = 8


def check(folder: str | None) -> None:
    """Raises UserError if the harness is not installed, or there is no such folder of tasks."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        fix = "pip install 'align-negatives[lm-eval]'"
        raise UserError("--lm-eval", "lm-evaluation-harness is not installed", fix) from None
    if folder is not None and not Path(folder).is_dir():
        raise UserError("--lm-eval-path", f"{shorten(folder)}: no such folder", "name one that holds task files")


def evaluate(subject: Subject, tasks: list[str], folder: str | None, most: int | None) -> dict[str, dict]:
    """{task: {"metrics": {metric: {head: figure}}, ...}} on the first `most` documents of each task.

    `folder` holds task files beside those of the harness. Raises UserError for a task that is not there.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=folder)
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            raise UserError("--lm-eval", f"there is no task {shorten(task)}", "name one, or its folder: --lm-eval-path")
    if subject.prefix is not None:
        raise UserError("--lm-eval", "the policy was trained with data.nat, whose prompt no task has", "leave it out")
    found = {name: _run(subject, name, tasks, manager, most) for name in subject.heads}
    names = sorted({task for own in found.values() for task in own["samples"]})
    return {
        task: {
            "harness": lm_eval.__version__,
            "documents": min(len(own["samples"][task]) for own in found.values()),
            "metrics": _metrics(task, found),
        }
        for task in names
    }


def _run(subject: Subject, name: str, tasks: list[str], manager, most: int | None) -> dict:
    """What the harness returns for one head."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    head = subject.heads[name]
    with as_head(head, subject.in_bf16) as model:
        loaded = HFLM(pretrained=model, tokenizer=subject.tokenizer, batch_size=BATCH, max_length=subject.max_length)
        try:
            return simple_evaluate(
                model=loaded, tasks=tasks, task_manager=manager, limit=most, log_samples=True, bootstrap_iters=0
            )
        except Exception as error:  # whatever a task's own code and data, or the harness with them, come to
            what, fix = f"the harness stops: {shorten(error, 160)}", "mend the task, or fetch its data before"
            raise UserError("--lm-eval", what, fix) from error


def _metrics(task: str, found: dict[str, dict]) -> dict[str, dict]:
    """{metric: {head: figure}} of a task."""
    results = {name: own["results"][task] for name, own in found.items()}
    metrics = {}
    for key, value in next(iter(results.values())).items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        values = {name: _of_documents(own["samples"][task], metric, kept) for name, own in found.items()}
        if all(_is_mean(values[name], results[name][key]) for name in results):
            metrics[f"{metric} ({kept})"] = figures.portions(values)
        else:
            metrics[f"{metric} ({kept})"] = {
                name: {"value": float(own[key]), "interval": [None, None]} for name, own in results.items()
            }
    return metrics


def _of_documents(samples: list[dict], metric: str, kept: str) -> np.ndarray:
    """(N,) the metric of each document behind one filter, by their number; empty where it is not a number."""
    own = sorted((one for one in samples if one.get("filter", kept) == kept), key=lambda one: one["doc_id"])
    values = [one.get(metric) for one in own]
    return np.array(values, float) if all(isinstance(value, int | float) for value in values) else np.array([])


def _is_mean(values: np.ndarray, result: float) -> bool:
    return len(values) > 0 and math.isclose(values.mean(), result, rel_tol=1e-9, abs_tol=1e-12)
