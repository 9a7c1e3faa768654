"""The section mining of a recipe: what is refused, and what is kept."""

from __future__ import annotations

import pytest
import yaml

from align import recipe
from align.cli import run as align
from align.errors import UserError
from tests.recipe_files import loaded

FINE = """
name: t
model: {path: smollm2-135m-instruct, adapter: {rank: 4}}
data: {sources: [{path: builtin:pairs}]}
mining: {}
objective: {name: dpo}
output: runs/t
"""


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mining.own=false"], "mining: names no candidates"),
        (["mining.files=[none.jsonl]"], "mining.files[0]: none.jsonl: no such file"),
        (["mining.files=[owner/name]"], "mining.files[0]: owner/name is no file"),
        (["mining.files=[3]"], "mining.files[0]: 3 is not text"),
        (["mining.scores=[]"], "mining.scores: names no score"),
        (["mining.scores=[similarty]"], "mining.scores[0]: 'similarty' is no score; did you mean 'similarity'?"),
        (["mining.scores=[logp, logp]"], "mining.scores[1]: logp is named twice"),
        (["mining.scores=[implicit_reward]"], "implicit_reward compares with a reference, but without mining.policy"),
        (["mining.scores=[reward]"], "mining.reward_model: is missing, but the score reward asks for it"),
        (["mining.reward_model=owner/name"], "mining.reward_model: is for the score reward"),
        (["mining.policy=owner/name"], "mining.policy: is for a score of log-probs or ches_keep"),
        (["mining={scores: [logp], policy: ./none}"], "mining.policy: ./none: no such folder"),
        (["mining={scores: [logp], encoder: owner/name}"], "mining.encoder: is for similarity"),
        (["mining.strategy.name=topk"], "mining.strategy.name: 'topk' is no strategy; did you mean 'top_k'?"),
        (["mining.strategy={}"], "mining.strategy.name: is missing"),
        (["mining.strategy={name: top_k, share: 1}"], "mining.strategy.share: unknown key"),
        (["mining.strategy={name: percentage, share: 0}"], "mining.strategy.share: 0 is out of range"),
        (["mining.strategy={name: runner_up, first: 0.5}"], "mining.strategy.last: 0.04 is not above first, 0.5"),
        (["mining={scores: [logp], strategy: {name: percentage}}"], "percentage compares shares of scores above 0"),
        (["mining.ches_keep=0"], "mining.ches_keep: 0 is out of range"),
        (["mining.verifier.name=numerik"], "mining.verifier.name: 'numerik' is no verifier"),
        (["mining.neigbours=3"], "mining.neigbours: unknown key; did you mean 'neighbours'?"),
        (["rollouts={}"], "mining: cannot go with rollouts"),
    ],
)
def test_mistakes_are_told(tmp_path, overrides, message):
    with pytest.raises(UserError) as error:
        loaded(tmp_path, FINE, *overrides)
    assert message in str(error.value)


def test_a_recipe_with_mining_is_written_out_and_read_again(tmp_path):
    own = loaded(tmp_path, FINE, "mining.strategy.name=ambiguous", "mining.scores=[relevance, similarity]")
    assert own.mining.strategy == {"name": "ambiguous", "a": 1.0, "b": 0.0}
    copy = tmp_path / "copy.yaml"
    copy.write_text(own.to_yaml())
    assert recipe.load(copy) == own
    assert yaml.safe_load(own.to_yaml())["mining"]["scores"] == ["relevance", "similarity"]


def test_rows_need_not_supply_the_objective_before_they_are_chosen(tmp_path):
    assert loaded(tmp_path, FINE, "data.sources=[builtin:retain]", "mining.neighbours=3").mining.neighbours == 3
    with pytest.raises(UserError, match="needs pairs"):
        loaded(tmp_path, FINE, "data.sources=[builtin:retain]", "mining=null")


def test_commands_refuse_what_is_not_theirs(tmp_path):
    loaded(tmp_path, FINE)
    with pytest.raises(UserError, match="its section mining makes rows, it does not train; align mine"):
        align(["train", str(tmp_path / "r.yaml")])
    with pytest.raises(UserError, match="has no section mining"):
        align(["mine", str(tmp_path / "r.yaml"), "mining=null"])


def test_mining_runs_on_one_process(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    loaded(tmp_path, FINE)
    with pytest.raises(UserError, match="tried on one process only"):
        align(["mine", str(tmp_path / "r.yaml")])
