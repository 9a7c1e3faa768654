"""What a recipe may say of the guard and of reward calibration."""

from __future__ import annotations

import pytest

from align import recipe
from align.errors import UserError
from align.schema import field_names

RECIPE = """
name: watched
data:      {sources: [builtin:pairs]}
objective: {name: dpo}
output:    runs/watched
"""


@pytest.fixture
def load(tmp_path):
    file = tmp_path / "watched.yaml"
    file.write_text(RECIPE)
    return lambda *settings: recipe.load(file, list(settings))


def test_it_is_on_by_default(load):
    guard = load().guard
    assert guard.action == "stop" and guard.every is None
    assert [source.path for source in guard.sources] == ["builtin:benign"]
    assert all(getattr(guard.budgets, name) for name in field_names(type(guard.budgets)) if name != "displacement")


def test_short_forms(load):
    assert load("guard.action=off").guard.action == "off"
    assert load("guard={action: warn, budgets: {kl: null}}").guard.budgets.kl is None
    assert [source.path for source in load("guard.anchors=[builtin:retain]").guard.anchors] == ["builtin:retain"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["guard.action=warm"], "guard.action: 'warm' is not one of off, warn, lower, anchor, rollback, stop; did you"),
        (["guard.budgets.kl=0"], "guard.budgets.kl: 0 is out of range; it must be above 0"),
        (["guard.budgets.retian=1"], "guard.budgets.retian: unknown key; did you mean 'retain'?"),
        (["guard.every=0"], "guard.every: 0 is out of range; it must be at least 1"),
        (["guard.sources=[builtin:benin]"], "did you mean 'benign'?"),
        (["guard.anchors=[none.jsonl]"], "guard.anchors[0].path: none.jsonl: no such file"),
        (["guard.budgets.sample=0.1"], "guard.budgets.sample: objective 'dpo' reads no samples; leave it out"),
        (["guard.budgets.retain=0.1"], "guard.budgets.retain: there are no retain rows; give retain.sources"),
        (["objective.name=nll", "guard.budgets.top1=0.1"], "guard.budgets.top1: objective 'nll' reads no negatives"),
        (["objective.name=npo", "guard.budgets.positive=1"], "objective 'npo' reads no positives"),
        (["objective.name=npo", "weights.calibrate=0.98"], "weights.calibrate: objective 'npo' is not on pairs"),
        (["weights.calibrate=1"], "weights.calibrate: 1 is out of range; it must be at least 0 and below 1"),
    ],
)
def test_what_is_refused(load, settings, message):
    with pytest.raises(UserError) as error:
        load(*settings)
    assert message in str(error.value)


def test_what_is_written_down_can_be_read_again(load, tmp_path):
    written = load("guard.budgets.kl=0.5", "weights.calibrate=0.9")
    file = tmp_path / "again.yaml"
    file.write_text(written.to_yaml())
    assert recipe.load(file) == written
