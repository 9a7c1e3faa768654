"""The recipe sections degrade and repair, and examples in the prompt: what is told about mistakes, and what is kept."""

import pytest

from align import recipe
from align.errors import UserError
from tests.recipe_files import loaded

FINE = """
name: t
model: {path: smollm2-135m-instruct}
data: {sources: [{path: builtin:pairs}]}
objective: {name: simpo}
output: runs/t
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["degrade={}", "repair={}"], "repair: cannot go with degrade"),
        (["degrade={}", "rollouts={}"], "degrade: cannot go with rollouts"),
        (["degrade={}", "mining.neighbours=1"], "degrade: cannot go with mining"),
        (["degrade.condition=evidense"], "did you mean 'evidence'?"),
        (["degrade.kept_by=verifier"], "degrade.verifier: is missing"),
        (["degrade.verifier={}"], "degrade.verifier: is not for kept_by margin"),
        (["degrade={kept_by: verifier, verifier: {name: exakt}}"], "degrade.verifier.name: 'exakt' is no verifier"),
        (["degrade={kept_by: verifier, verifier: {}, gap: 1}"], "degrade.gap: a verifier says right or wrong"),
        (["degrade.kept_by=judge"], "judges: is missing, but degrade.kept_by: judge asks for it"),
        (["degrade={}", "judges.function.name=a.b"], "judges: is used by degrade.kept_by: judge, which asks for none"),
        (["degrade.kept_by=judge", "judges.rollout={}"], "judges.rollout: goes on from steps"),
        (["degrade.kept_by=judge", "judges={function: {name: a.b}, segment: lines}"], "judges.segment: whole answers"),
        (["degrade.model=./none"], "degrade.model: ./none: no such folder"),
        (["degrade={}", "sampling.every=2"], "sampling.every: is for samples drawn while a run goes on"),
        (["degrade={}", "sampling.in_context={}"], "sampling.in_context: shows what degrade takes away"),
        (["repair={}", "sampling.k=2"], "objective 'simpo' uses no samples"),
        (["repair.cascade=[llm]"], "judges: is missing, but repair.cascade asks for it"),
        (["repair.cascade=[llm]", "judges.function.name=a.b"], "repair.cascade[0]: 'llm' is no judge of this recipe"),
        (["repair.suspects=all"], "repair.suspects: all, but there is no cascade to ask"),
        (["repair.sure=0.5"], "repair.sure: is for a cascade of judges"),
        (
            ["repair={suspects: all, cascade: [function], folds: 3}", "judges.function.name=a.b"],
            "repair.folds: is for margins",
        ),
        (
            ["repair={suspects: all, cascade: [function], action: reweight}", "judges.function.name=a.b"],
            "repair.action: reweight weighs by the share of copies",
        ),
        (["rollouts={}", "sampling.in_context={positives: 0, negatives: 0}"], "in_context: shows no examples"),
        (["rollouts={}", "sampling.in_context={negatives: 0}"], "analysis: needs positives and negatives"),
        (["repair={}", "data.sources=[builtin:benign]", "data.sources=[{path: builtin:benign, split: heldout}]"],
         "objective 'simpo' needs pairs"),
    ],
)  # fmt: skip
def test_mistakes_are_told(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, FINE, *overrides)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["degrade={condition: noise, gap: 0.2}", "sampling.k=3"],
        ["repair={action: relabel, cascade: [function]}", "judges.function.name=a.b"],
        ["objective={name: d2o}", "model.adapter={}", "sampling.in_context={positives: 1}"],
    ],
)
def test_what_is_sound_is_written_out_and_read_again(tmp_path, overrides):
    own, copy = loaded(tmp_path, FINE, *overrides), tmp_path / "copy.yaml"
    copy.write_text(own.to_yaml())
    assert recipe.load(copy) == own
