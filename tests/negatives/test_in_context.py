"""Examples in the prompt while sampling: which are shown, that scoring knows nothing of them, and what is told."""

from __future__ import annotations

import json

import pytest

from align import generation, recipe
from align.data.examples import Example, Response
from align.data.ledger import Ledger
from align.data.plan import PlannedFeed, StepPlan
from align.data.tokenize import encode_prompt
from align.errors import UserError
from align.generation import draw, generate
from align.negatives import in_context
from align.negatives.in_context import Contexts
from align.negatives.options import InContext, Sampling
from align.negatives.sampling import Sampler
from align.rollouts import iterate
from tests import rollout_worlds, tiny
from tests.rollout_worlds import lines

TOKENIZER = tiny.tokenizer()


def example(number: int, *roles: str) -> Example:
    responses = tuple(Response(f"{role} of {number} " + "x" * 40, role) for role in roles or ("positive", "negative"))
    return Example(f"Question {number}?", responses, "tiny", f"rows.jsonl:{number}")


ROWS = [example(number) for number in range(12)]


def contexts(rows=ROWS, seed: int = 0, instruction: str | None = None, **shown) -> Contexts:
    return Contexts(Sampling(instruction=instruction, in_context=InContext(**{"characters": 20, **shown})), rows, seed)


def test_no_prompt_sees_its_own_answers():
    made = contexts(positives=3, negatives=2)
    for one in ROWS:
        text = made.instruction(one.key)
        number = one.prompt.split()[1][:-1]
        assert f"Question {number}?" not in text and f"of {number} " not in text
        assert text.count("\nWanted answer: ") == 3 and text.count("\nUnwanted answer: ") == 2
        assert "x" * 20 not in text and "..." in text, "long answers are cut"


def test_an_instruction_comes_first_and_the_seed_draws_the_examples():
    one = ROWS[0].key
    assert contexts(instruction="Be kind.").instruction(one).startswith("Be kind.\n\n")
    assert contexts().instruction(one) == contexts().instruction(one) != contexts(seed=1).instruction(one)
    assert Contexts(Sampling(instruction="Be kind."), [], 0).instruction(one) == "Be kind."
    assert Contexts(Sampling(), [], 0).instruction(one) is None


def test_rows_with_both_kinds_come_first():
    rows = [example(number, "negative") for number in range(100, 140)] + ROWS
    text = contexts(rows, positives=2, negatives=2).instruction(ROWS[0].key)
    assert text.count("Prompt: ") == 2 and "Question 1" not in text.replace("Question 10", "").replace(
        "Question 11", ""
    )


def test_the_analysis_is_what_the_model_says_of_the_examples():
    model, made = tiny.llama(initializer_range=0.25), contexts(analysis=6)
    made.analyse(model, TOKENIZER)
    for half, block in enumerate(made.blocks):
        ids = encode_prompt(TOKENIZER, f"{block}\n\n{in_context._QUESTION}")
        said = TOKENIZER.decode(generate(model, TOKENIZER, [ids], 6)[0], skip_special_tokens=True)
        assert made.analyses[half] == " ".join(said.split())
    shown = made.instruction(ROWS[0].key)
    assert any(f"What sets them apart: {said}" in shown for said in made.analyses if said)
    silent = contexts(analysis=0)
    silent.analyse(None, TOKENIZER)
    assert silent.analyses == ["", ""] and "What sets" not in silent.instruction(ROWS[0].key)


def test_too_few_examples_are_told():
    with pytest.raises(UserError, match=r"in_context\.positives: asks for more positives than half"):
        contexts([example(number, "negative") for number in range(20)])
    with pytest.raises(UserError, match="tokens of examples and prompt and 64 of answer are over the model's 128"):
        contexts().encode(tiny.llama(max_position_embeddings=128), TOKENIZER, ROWS[0])


def test_samples_of_a_training_run_are_drawn_behind_examples_and_scored_without(tmp_path):
    row = tiny.row(ROWS[0].prompt, negatives=["bad"], encoder=TOKENIZER)
    config = Sampling(k=2, max_new_tokens=8, in_context=InContext(analysis=4, characters=20))
    plan = StepPlan([1.0], prompts_per_step=1, epochs=1, max_steps=1, seed=0)
    made = Sampler(
        PlannedFeed([row], plan), TOKENIZER, config, contexts=Contexts(config, ROWS, 0), seed=0, max_length=512,
        folder=tmp_path, ledger=Ledger(), equal_calls=False,
    )  # fmt: skip
    model = tiny.llama(initializer_range=0.25)
    made.prepare(model, 0)
    shown = made.contexts.instruction(row.example.key)
    (drawn,) = draw(
        model, TOKENIZER, [encode_prompt(TOKENIZER, row.example.prompt, shown)], [f"0/0/{row.example.key}"], config, 2
    )
    assert made.drawn[row.example.key] == [ids for ids, _ in drawn]
    scored = made.with_samples(row)
    assert scored is not None and scored.prompt_ids == row.prompt_ids
    assert json.loads((tmp_path / "round-0.in_context.json").read_text()) == made.contexts.describe()


def test_roll_outs_are_sampled_with_examples_and_written_without(tmp_path):
    file = rollout_worlds.make(tmp_path)
    rows = lines(tmp_path / "rows.jsonl")
    text = [json.dumps(row | {"negatives": ["wrong"]}) + "\n" for row in rows]
    (tmp_path / "rows.jsonl").write_text("".join(text))
    shown = "sampling.in_context={positives: 1, negatives: 1, analysis: 4, characters: 40}"
    loaded = recipe.load(file, ["warm_start=null", "sampling.k=2", "rollouts.prompts=3", shown])
    plain = recipe.load(file, ["warm_start=null", "sampling.k=2", "rollouts.prompts=3"])
    policy = generation.load_policy(loaded, loaded.model.path)
    ours = iterate.sample_round(loaded, 0, tmp_path / "ours", policy)
    bare = iterate.sample_round(plain, 0, tmp_path / "bare", policy)
    assert [row["prompt"] for row in ours] == [row["prompt"] for row in bare]
    assert [row["responses"] for row in ours] != [row["responses"] for row in bare]
    assert {one["made"]["by"] for row in ours for one in row["responses"]} == {"in_context"}
    kept = json.loads((tmp_path / "ours/rollouts.in_context.json").read_text())
    assert len(kept) == 2 and "Unwanted answer: wrong" in kept[0]["examples"]
    assert not (tmp_path / "bare/rollouts.in_context.json").exists()
