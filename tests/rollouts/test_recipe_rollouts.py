"""The sections warm_start, rollouts and judges of a recipe: what is refused, and what is kept."""

import pytest
import yaml

from align import recipe
from align.errors import UserError
from tests.recipe_files import loaded

FINE = """
name: t
model: {path: smollm2-135m-instruct, adapter: {rank: 4}}
data: {sources: [{path: builtin:arithmetic}]}
objective: {name: bcpg}
output: runs/t
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["judges.rollout={}"], "judges: is for roll-outs, and there are none"),
        (["rollouts={}", "judges={}"], "judges: names no judge"),
        (["rollouts={}", "judges.rolout={}"], "judges.rolout: unknown key; did you mean 'rollout'?"),
        (["rollouts={}", "judges.rollout.n=0"], "judges.rollout.n: 0 is out of range"),
        (["rollouts={}", "judges.prm={}"], "judges.prm.path: is missing"),
        (["rollouts={}", "judges.prm.path=./none"], "judges.prm.path: ./none: no such folder"),
        (
            ["rollouts={}", "judges.prm={path: smollm2-135m-instruct, bad_token: '-'}"],
            "bad_token: goes with good_token",
        ),
        (["rollouts={}", "judges.llm={url: localhost, model: m}"], "judges.llm.url: localhost is no http address"),
        (["rollouts={}", "judges.function.name=odd"], "judges.function.name: 'odd' is no package.function"),
        (["rollouts.verifier.name=numerik"], "did you mean 'numeric'?"),
        (["rollouts.verifier.name=regex"], "rollouts.verifier.pattern: is missing"),
        (["rollouts.verifier.pattern=x"], "rollouts.verifier.pattern: is not for numeric"),
        (["rollouts.verifier={name: regex, pattern: '('}"], "is no regular expression"),
        (["rollouts.verifier.timeout=3"], "rollouts.verifier.timeout: is for code, not for numeric"),
        (["rollouts.groups=all"], "learns nothing from prompts that are all right or all wrong"),
        (["rollouts.against=[{name: dpoo}]"], "did you mean 'dpo'?"),
        (["rollouts.against=[{name: bcpg, beta: 3}]"], "rollouts.against[0].beta: 3 is out of range"),
        (["rollouts={}", "sampling.every=2"], "sampling.every: is for samples drawn while the run goes on"),
        (["rollouts={}", "warm_start.path=none.jsonl"], "warm_start.path: none.jsonl: no such file"),
        (["sampling.k=2"], "objective 'bcpg' uses no samples"),
        ([], "objective 'bcpg' needs negatives"),  # the rows of arithmetic are prompts and solutions
    ],
)
def test_mistakes_are_told(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, FINE, *overrides)
    assert message in str(error.value)


def test_a_recipe_with_roll_outs_is_written_out_and_read_again(tmp_path):
    own = loaded(tmp_path, FINE, "rollouts={against: [{name: nll}]}", "judges.rollout.n=2", "sampling.k=3")
    assert own.eval.sources[0].split == "heldout" and len(own.eval.sources) == 1  # no prompts without right answers
    copy = tmp_path / "copy.yaml"
    copy.write_text(own.to_yaml())
    assert recipe.load(copy) == own
    assert yaml.safe_load(own.to_yaml())["sampling"]["k"] == 3


def test_objectives_on_single_responses_may_keep_all_groups(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(FINE.replace("bcpg", "nsr"))
    assert recipe.load(file, ["rollouts.groups=all"]).rollouts.groups == "all"
