"""One label a step from several judges, and ProcessBench's measures."""

import pytest

from align.judges import consensus
from align.judges.consensus import first_error, first_marked, labels, process_bench, step_quality


def test_a_step_is_right_only_if_all_say_so():
    scores = {"a": [0.9, 0.9, 0.5, None, None], "b": [0.6, 0.4, 0.5, 0.9, 0.1]}
    assert labels(scores, {"a": 0.5, "b": 0.5}, 5) == [1, -1, 1, None, -1]
    assert labels(scores, {"a": 0.95, "b": 0.1}, 5) == [-1, -1, -1, None, None]
    assert labels({}, {}, 2) == [None, None]


def test_the_first_error():
    assert [first_error(scores, 0.5) for scores in ([1, 0.4, 0], [1, 0.5], [None, 0.1], [0.1, None], [])] == [
        1,
        -1,
        None,
        0,
        -1,
    ]
    assert [first_marked(marks) for marks in ([1, -1, None], [1, 1], [1, None], [])] == [1, -1, None, None]


def test_process_bench():
    found = process_bench([1, 0, -1, -1, 2, None], [1, 1, -1, 2, -1, -1])
    assert found["first_error_accuracy"] == pytest.approx(1 / 3)
    assert found["accuracy_without_error"] == pytest.approx(1 / 3)
    assert found["f1"] == pytest.approx(1 / 3) and found["no_opinion"] == 1
    assert process_bench([0], [1])["f1"] is None  # no sound answer: there is no mean
    assert process_bench([0, 0], [1, -1])["f1"] == 0.0
    assert process_bench([1, -1, -1, -1], [1, 1, -1, -1])["f1"] == pytest.approx(2 / 3)


def test_quality_of_single_steps():
    found = step_quality([[0.9, 0.1, None], [0.7]], [[1, 1, -1], [-1]], 0.5)
    assert found == {"steps": 3, "accuracy": pytest.approx(1 / 3), "precision": 0.5, "recall": 0.5}
    assert consensus.step_quality([], [], 0.5)["precision"] is None
