"""What a recipe may say where each role has an adapter of its own: what was never tried is refused, nothing ignored."""

from __future__ import annotations

import json

import pytest

from align import job, recipe
from align.errors import UserError

RECIPE = """
name: heads
data:      {{sources: [{data}]}}
model:     {{path: {model}, adapter: {{rank: 4}}}}
objective: {{name: likra}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    {output}
"""


@pytest.fixture
def file(tiny_model, uneven_rows, tmp_path):
    path = tmp_path / "heads.yaml"
    path.write_text(RECIPE.format(data=uneven_rows, model=tiny_model, output=tmp_path / "run"))
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["model.adapter=null"], "trains an adapter for each role, but there is none"),
        (["retain.positives=true"], "a retain term has never been tried with objective 'likra'"),
        (["objective.heads=negative", "weights.positive=2"], "objective 'likra' reads no positives"),
        (["objective.heads=positive", "weights.negative=2"], "objective 'likra' reads no negatives"),
        (["objective.heads=none"], "objective.heads"),
        (["objective.heads=positive", "data.nat={success: Good.}"], "has never been tried with objective 'likra'"),
        (["reference.policy=adapter_off"], "objective 'likra' uses none"),
    ],
)
def test_refused(settings, message, file):
    with pytest.raises(UserError) as error:
        recipe.load(file, settings)
    assert message in str(error.value) and len(error.value.each()) == 1


@pytest.mark.parametrize("heads", ["both", "positive"])
def test_a_head_without_rows_is_refused_by_a_look_at_them(heads, file, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": f"{n}?", "negatives": ["No."]}) + "\n" for n in range(20)))
    with pytest.raises(UserError, match="needs positives, but none of the first 20 rows can supply it"):
        recipe.load(file, [f"objective.heads={heads}", f"data.sources=[{rows}]"])
    assert recipe.load(file, ["objective.heads=negative", f"data.sources=[{rows}]"])


def test_a_head_without_rows_is_refused_before_weights_are_loaded(file, tmp_path):
    """Where a look does not tell: `align check` reads no tables."""
    rows = tmp_path / "rows.csv"
    rows.write_text("prompt,completion,label\n" + "".join(f"{n}?,No.,false\n" for n in range(20)))
    loaded = recipe.load(file, [f"data.sources=[{rows}]"])
    with pytest.raises(UserError, match="no row has a positive, so the positive head would learn nothing"):
        job.train(loaded)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_resolved_recipe_loads_again(file, tmp_path):
    written = tmp_path / "resolved.yaml"
    written.write_text(recipe.load(file, ["objective.heads=negative", "train.snapshots=true"]).to_yaml())
    again = recipe.load(written)
    assert again.objective == {"name": "likra", "heads": "negative"} and again.train.snapshots
    assert again.build_objective().roles() == {-1}
