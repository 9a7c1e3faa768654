"""The negative teacher of a recipe: which model it is, what the objective sees of it, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from align import recipe
from align.data.collate import collate
from align.data.layout import PADDED
from align.errors import UserError
from align.job.references import load_teacher
from align.objectives import NEGATIVE
from align.view import Scorer
from tests import tiny
from tests.test_likelihood_ratio import save

RECIPE = """
name: taught
data:      {{sources: [{data}]}}
model:     {{path: {model}, adapter: {{rank: 4}}}}
objective: {{name: negative_distillation}}
reference: {{teacher: {teacher}}}
eval:      {{holdout: 0, generate: 0, sources: []}}
output:    {output}
"""
ARGS = SimpleNamespace(device="cpu", bf16=False)


@pytest.fixture
def loaded(tiny_model, uneven_rows, tmp_path):
    """The recipe with a teacher and settings."""

    def load(teacher: object, *settings: str) -> recipe.Recipe:
        file = tmp_path / "taught.yaml"
        given = {"data": uneven_rows, "model": tiny_model, "output": tmp_path / "run", "teacher": teacher}
        file.write_text(RECIPE.format(**given))
        return recipe.load(file, list(settings))

    return load


def teacher_of(loaded: recipe.Recipe, policy=None):
    return load_teacher(loaded, loaded.build_objective(), policy or tiny.llama(), ARGS, PADDED)


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("likra")
    save(folder / "final", tiny_model, ["positive", "negative"])
    return folder


def test_the_negative_head_of_a_run_teaches(loaded, run, tiny_model):
    """The objective sees sum_v N(v) * -log(1 - p(v)), N by PEFT alone; of the rows it reads, and nothing is kept."""
    row = tiny.row("Who?", positives=["I"], negatives=["You", "Nobody else"])
    batch, policy = collate([row], 258), tiny.llama(seed=3)
    given = loaded(run)
    scorer = Scorer(given.build_objective(), None, None, 0, teacher_of(given))
    view = scorer.view(batch, *scorer.policy(policy, batch, 0), {}, progress=0.25)
    assert view.progress == 0.25
    head = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), str(run / "final" / "negative"))
    for index, response in enumerate(row.responses):
        ids, first = torch.tensor([[*row.prompt_ids, *response.ids]]), len(row.prompt_ids) - 1
        with torch.no_grad():
            p, taught = (model(input_ids=ids).logits[0, first:-1].softmax(-1) for model in (policy, head.eval()))
        expected = -(taught * torch.log1p(-p)).sum(-1)
        found = view.extras["soft_unlikelihood"][index, : len(response.ids)]
        torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)
    assert (view.role == NEGATIVE).sum() == 2 and view.extras["soft_unlikelihood"].requires_grad


def test_a_model_teaches(loaded, tiny_model):
    teacher = teacher_of(loaded(tiny_model))
    assert not any(weight.requires_grad for weight in teacher.model.parameters()) and not teacher.model.training
    torch.testing.assert_close(teacher.model.lm_head.weight, tiny.llama().lm_head.weight, check_device=False)


def test_what_cannot_teach_is_refused(loaded, tiny_model, tmp_path):
    save(tmp_path / "positive" / "final", tiny_model, ["positive"])
    with pytest.raises(UserError, match=r"reference\.teacher: .*was trained without a negative head; train one: acc"):
        teacher_of(loaded(tmp_path / "positive"))
    tiny.save(tmp_path / "other", vocab_size=300)
    with pytest.raises(UserError, match=r"reference\.teacher: .* has 300 words, the policy 259"):
        teacher_of(loaded(tmp_path / "other"))
    with pytest.raises(UserError, match=r"reference\.teacher: runs/none: .*; train one: accelerate launch"):
        teacher_of(loaded("runs/none"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["reference.teacher=null"], "learns from a negative teacher, but none is named; name a run of likra"),
        (["reference.teacher=./nowhere"], "./nowhere: no such folder; name a finished run of likra, or a model"),
        (["objective={name: dpo}"], "reference.teacher: objective 'dpo' learns from no teacher; leave it out"),
        (["reference.policy=adapter_off"], "reference.policy: objective 'negative_distillation' compares with no"),
    ],
)
def test_recipes_that_are_refused(settings, message, loaded, tiny_model):
    with pytest.raises(UserError) as error:
        loaded(tiny_model, *settings)
    assert message in str(error.value) and len(error.value.each()) == 1
