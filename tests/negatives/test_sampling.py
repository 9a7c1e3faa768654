"""Samples of the policy's own: their distribution, that nothing but seed, round, prompt and k decides them, filters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from align import generation
from align.data.ledger import Ledger
from align.data.plan import PlannedFeed, StepPlan
from align.data.tokenize import TokenizedRow, encode_prompt
from align.generation import generate
from align.negatives.in_context import Contexts
from align.negatives.options import Sampling
from align.negatives.sampling import Sampler, flaw, is_degenerate
from align.objectives import NEGATIVE, SAMPLE
from tests import tiny

TOKENIZER = tiny.tokenizer()
END = TOKENIZER.eos_token_id
PROMPTS = ("Why?", "And where is the other one of them?", "Say it.", "How much is the fish, and who asks?", "Go on")


@pytest.fixture(scope="module")
def model():
    """Peaked enough that temperature and nucleus matter."""
    return tiny.llama(initializer_range=0.25)


@pytest.fixture(scope="module")
def uniform():
    """All tokens equally likely whatever the prompt: differences between draws come from the random numbers alone."""
    model = tiny.llama()
    model.lm_head.weight.data.zero_()
    return model


def rows(*prompts: str) -> list[TokenizedRow]:
    return [
        tiny.row(prompt, negatives=["Bad answer"], place=f"rows.jsonl:{line}", encoder=TOKENIZER)
        for line, prompt in enumerate(prompts or PROMPTS, 1)
    ]


def sampler(some_rows, folder: Path, *, seed=0, max_length=512, steps=1, equal_calls=False, **options) -> Sampler:
    """One whose steps take all rows each."""
    plan = StepPlan([1.0] * len(some_rows), prompts_per_step=len(some_rows), epochs=1, max_steps=steps, seed=0)
    config = Sampling(**options)
    return Sampler(
        PlannedFeed(some_rows, plan), TOKENIZER, config, contexts=Contexts(config, [], seed), seed=seed,
        max_length=max_length, folder=folder, ledger=Ledger(), equal_calls=equal_calls,
    )  # fmt: skip


def drawn(model, some_rows, folder: Path, step: int = 0, **options) -> dict[str, list[list[int]]]:
    """Prompt -> ids of its samples."""
    made = sampler(some_rows, folder, **options)
    made.prepare(model, step)
    return {row.example.prompt: made.drawn[row.example.key] for row in some_rows}


# The distribution.


def next_probs(model, ids: list[list[int]], temperature: float = 1.0, top_p: float = 1.0) -> Tensor:
    """(len(ids), V) what the next token is to be drawn from: the smallest most likely set that holds `top_p`."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor(ids), use_cache=False).logits[:, -1].double()
    probs = (logits / temperature).softmax(-1)
    ordered, order = probs.sort(descending=True)
    inside = ordered.cumsum(-1) - ordered < top_p
    probs = torch.zeros_like(probs).scatter(-1, order, ordered * inside)
    return probs / probs.sum(-1, keepdim=True)


def surprise(tokens: list[int], probs: Tensor) -> float:
    """Pearson's chi-square in standard deviations above what is expected; rare tokens are one class."""
    counts, expected = torch.bincount(torch.tensor(tokens), minlength=len(probs)).double(), probs * len(tokens)
    assert (counts[expected == 0] == 0).all(), "a token that cannot be drawn"
    common = expected >= 5
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    counts, expected = counts[expected > 0], expected[expected > 0]
    freedom = len(counts) - 1
    return ((((counts - expected) ** 2 / expected).sum() - freedom) / (2 * freedom) ** 0.5).item()


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (0.6, 1.0), (1.7, 1.0), (1.0, 0.5), (0.7, 0.8)])
def test_first_token_follows_the_model(temperature, top_p, model, tmp_path):
    row = rows("Why?")
    options = {"temperature": temperature, "top_p": top_p, "k": 3000, "batch_size": 3000, "max_new_tokens": 1}
    tokens = [ids[0] for ids in drawn(model, row, tmp_path, **options)["Why?"]]
    prompt = [list(row[0].prompt_ids)]
    assert surprise(tokens, next_probs(model, prompt, temperature, top_p)[0]) < 4
    # The same without the nucleus, or at another temperature, must not pass.
    other = next_probs(model, prompt, temperature if top_p < 1 else 1.6 * temperature)[0]
    assert surprise(tokens, other) > 10


def test_second_token_follows_the_model(model, tmp_path):
    """Summed over all first tokens that do not end the answer; so the two draws of a sample are independent too."""
    row = rows("Why?")
    samples = drawn(model, row, tmp_path, k=3000, batch_size=3000, max_new_tokens=2)["Why?"]
    tokens = [ids[1] for ids in samples if len(ids) == 2]
    first = next_probs(model, [list(row[0].prompt_ids)])[0]
    after = next_probs(model, [[*row[0].prompt_ids, token] for token in range(len(first))])
    first[END] = 0
    assert len(tokens) > 2000
    assert surprise(tokens, (first / first.sum()) @ after) < 4


# What decides a draw.


SMALL = {"k": 3, "max_new_tokens": 8}


@pytest.fixture(scope="module")
def one_batch(model, tmp_path_factory) -> dict[str, list[list[int]]]:
    return drawn(model, rows(), tmp_path_factory.mktemp("one"), batch_size=100, **SMALL)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_batch_size_does_not_matter(batch_size, model, one_batch, tmp_path):
    assert drawn(model, rows(), tmp_path, batch_size=batch_size, **SMALL) == one_batch
    assert all(len(samples) == 3 for samples in one_batch.values())


def test_order_of_prompts_does_not_matter(model, one_batch, tmp_path):
    assert drawn(model, rows(*reversed(PROMPTS)), tmp_path, **SMALL) == one_batch


def test_other_prompts_do_not_matter(model, one_batch, tmp_path):
    found = drawn(model, rows(*PROMPTS[1:3]), tmp_path, **SMALL)
    assert found == {prompt: one_batch[prompt] for prompt in PROMPTS[1:3]}


def test_equal_calls_do_not_matter(model, one_batch, tmp_path):
    assert drawn(model, rows(), tmp_path, equal_calls=True, batch_size=4, **SMALL) == one_batch


def test_training_mode_does_not_matter_and_is_restored(one_batch, tmp_path):
    model = tiny.llama(initializer_range=0.25, attention_dropout=0.5).train()
    assert drawn(model, rows(), tmp_path, **SMALL) == one_batch
    assert model.training


def test_seed_round_prompt_and_number_each_give_other_samples(uniform, tmp_path):
    def draw(folder: str, prompt: str = "Why?", **more) -> list[list[int]]:
        return drawn(uniform, rows(prompt), tmp_path / folder, **SMALL, **more)[prompt]

    first = draw("first")
    assert draw("again") == first
    others = [draw("seed", seed=1), draw("round", step=1, steps=2, every=1), draw("prompt", prompt="Who?")]
    streams = [tuple(ids) for samples in [first, *others] for ids in samples]
    assert len(set(streams)) == len(streams) == 12


# Generation.


PENALTIES = {"repetition_penalty": 5.0, "top_k": 1, "temperature": 0.1, "do_sample": True, "min_new_tokens": 8}


def test_the_models_own_generation_settings_do_not_enter(one_batch, tmp_path):
    model = tiny.llama(initializer_range=0.25)
    model.generation_config.update(**PENALTIES, no_repeat_ngram_size=1)
    own, before = model.generation_config, model.generation_config.to_dict()
    assert drawn(model, rows(), tmp_path, **SMALL) == one_batch
    assert model.generation_config is own and own.to_dict() == before


def test_generation_settings_under_an_adapter_are_restored_too(tmp_path):
    """On the model inside as well: it is what is merged and saved."""
    model = get_peft_model(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    inner = model.get_base_model()
    inner.generation_config.update(**PENALTIES)
    own, before = inner.generation_config, inner.generation_config.to_dict()
    drawn(model, rows(), tmp_path, **SMALL)
    assert model.generation_config is own
    assert inner.generation_config is own and own.to_dict() == before


@pytest.mark.parametrize("stops", [[END], [END, 40]])
def test_ends_with_the_end_of_turn_token(stops, uniform, tmp_path):
    """Inclusive; the model's generation settings may name further ones."""
    own = uniform.generation_config.eos_token_id
    uniform.generation_config.eos_token_id = stops
    samples = drawn(uniform, rows("Why?"), tmp_path, k=200, batch_size=200, max_new_tokens=80)["Why?"]
    uniform.generation_config.eos_token_id = own
    ended = [ids for ids in samples if ids[-1] in stops]
    assert 20 < len(ended) < 180, "both ends must occur"
    assert {ids[-1] for ids in ended} == set(stops)
    assert not any(set(ids[:-1]) & set(stops) for ids in samples)
    assert all(len(ids) == 80 for ids in samples if ids not in ended)


# Filters.


def test_flaws():
    fine = list(range(20))
    assert flaw(fine, "A fine answer", set(), set()) is None
    assert flaw([END], " \n", set(), set()) == "empty"
    assert flaw([1, 2] * 8, "abababab", set(), set()) == "degenerate"
    assert flaw(fine, "A  FINE\nanswer ", {"a fine answer"}, set()) == "duplicate"
    assert flaw(fine, "A  FINE\nanswer ", set(), {"a fine answer"}) == "equal to a negative"
    assert flaw(fine, "A fine answer", {"another"}, {"a fine"}) is None


@pytest.mark.parametrize(
    "ids, expected",
    [
        (list(range(30)), False),
        ([7] * 7, False),  # too short to tell
        ([7] * 5 + [1, 2, 3], True),  # more than half is one token
        ([7] * 4 + [1, 2, 3, 4], False),  # exactly half is not more
        ([1, 2, 3] * 6, True),  # 15 runs of four, 3 distinct
        ([*range(12), *range(12)], False),  # said twice: 21 runs, 12 distinct
        ([*range(8)] * 3, True),  # said three times: 21 runs, 8 distinct
    ],
)
def test_degenerate(ids, expected):
    assert is_degenerate(ids) is expected


def keep(folder: Path, row: TokenizedRow, *texts: str, number: int = 0) -> None:
    """Puts samples into the run folder as an earlier start would have left them."""
    samples = [{"text": text, "ids": [*TOKENIZER(text)["input_ids"], END]} for text in texts]
    folder.mkdir(exist_ok=True)
    with open(folder / f"round-{number}.rank0.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt_key": row.example.key, "prompt": row.example.prompt, "samples": samples}) + "\n")


def sample_texts(row: TokenizedRow) -> list[str]:
    return [TOKENIZER.decode(r.ids, skip_special_tokens=True) for r in row.responses if r.role == SAMPLE]


def test_k_follows_what_is_usable(tmp_path):
    some_rows = rows("Why?", "Who?", "When?")
    keep(tmp_path, some_rows[0], "One answer", "Another answer", "A third")
    keep(tmp_path, some_rows[1], "One answer", "one  ANSWER", "Another")
    keep(tmp_path, some_rows[2], " ", "bad ANSWER ", "Only this")
    made = sampler(some_rows, tmp_path, k=3)
    made.prepare(None, 0)
    assert sample_texts(made.with_samples(made.feed.all[0])) == ["One answer", "Another answer", "A third"]
    assert sample_texts(made.with_samples(made.feed.all[1])) == ["One answer", "Another"]
    assert sample_texts(made.with_samples(made.feed.all[2])) == ["Only this"]
    assert made.ledger.dropped == {
        "sample dropped: duplicate": 1, "sample dropped: empty": 1, "sample dropped: equal to a negative": 1,
    }  # fmt: skip
    assert made.ledger.places["sample dropped: empty"] == ["rows.jsonl:3"]


def test_given_responses_stay_and_samples_end_their_turn(tmp_path):
    some_rows = rows("Why?")
    keep(tmp_path, some_rows[0], "One answer", "Another")
    made = sampler(some_rows, tmp_path, k=2)
    made.prepare(None, 0)
    found = made.with_samples(made.feed.all[0])
    assert found.responses[:1] == some_rows[0].responses and found.responses[0].role == NEGATIVE
    assert all(response.ids[-1] == END for response in found.responses[1:])
    assert found.prompt_ids == some_rows[0].prompt_ids and found.example is some_rows[0].example
    assert some_rows[0] == rows("Why?")[0], "the row without samples is left as it was"


def test_a_prompt_without_usable_samples_is_dropped_and_counted_once(tmp_path):
    some_rows = rows("Why?", "Who?")
    keep(tmp_path, some_rows[0], "Bad answer", "")
    keep(tmp_path, some_rows[1], "Good")
    made = sampler(some_rows, tmp_path, k=2, steps=3)
    for step in range(3):
        made.prepare(None, step)
        assert made.with_samples(made.feed.all[0]) is None and made.with_samples(made.feed.all[0]) is None
        assert made.with_samples(made.feed.all[1]) is not None
    assert made.ledger.dropped["prompt dropped: no usable sample"] == 1
    assert made.ledger.places["prompt dropped: no usable sample"] == ["rows.jsonl:1"]


def test_samples_are_cut_to_the_room_behind_the_prompt(tmp_path):
    some_rows = rows("Why?")
    keep(tmp_path, some_rows[0], "A rather long answer to so short a question")
    room = 9
    made = sampler(some_rows, tmp_path, max_length=len(some_rows[0].prompt_ids) + room)
    made.prepare(None, 0)
    assert [
        len(response.ids) for response in made.with_samples(made.feed.all[0]).responses if response.role == SAMPLE
    ] == [room]


# The run folder.


@pytest.fixture
def prompts_forwarded(monkeypatch) -> list[list[int]]:
    """The prompts (token ids) that reach the model, one entry a sample."""
    seen: list[list[int]] = []

    def spied(model, tokenizer, prompts, max_new_tokens, processors, k):
        seen.extend(prompt for prompt in prompts for _ in range(k))
        return generate(model, tokenizer, prompts, max_new_tokens, processors, k)

    monkeypatch.setattr(generation, "generate", spied)
    return seen


def test_a_prompt_is_read_once_for_all_its_answers(model, one_batch, monkeypatch, tmp_path):
    """The same samples as of prompts that are read for each answer, from fewer tokens."""
    counts = []

    def count(module, args, more) -> None:
        counts[-1] += (args[0] if args else more["input_ids"]).numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    for name in ("once", "each"):
        counts.append(0)
        assert drawn(model, rows(), tmp_path / name, **SMALL) == one_batch
        monkeypatch.setattr(generation, "_read_once", lambda *args: {})
    hook.remove()
    tokens = sum(len(encode_prompt(TOKENIZER, row.example.prompt)) for row in rows())
    assert counts[1] - counts[0] >= 2 * (tokens - len(rows()))


def test_kept_samples_are_reused(model, one_batch, prompts_forwarded, tmp_path):
    assert drawn(model, rows(), tmp_path, **SMALL) == one_batch
    prompts_forwarded.clear()
    assert drawn(None, rows(), tmp_path, **SMALL) == one_batch
    assert not prompts_forwarded


def cut_last_line(folder: Path) -> str:
    """As a kill in the middle of a write leaves it; returns the prompt whose samples are lost."""
    (file,) = folder.glob("round-0.rank*.jsonl")
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:-1]) + lines[-1][: len(lines[-1]) // 2])
    return json.loads(lines[-1])["prompt"]


def test_a_line_cut_off_by_a_kill_is_drawn_again(model, one_batch, prompts_forwarded, tmp_path):
    drawn(model, rows(), tmp_path, **SMALL)
    lost = cut_last_line(tmp_path)
    prompts_forwarded.clear()
    assert drawn(model, rows(), tmp_path, **SMALL) == one_batch
    assert prompts_forwarded == [encode_prompt(TOKENIZER, lost)] * 3


def test_a_second_start_after_a_cut_off_line_reads_all(model, one_batch, prompts_forwarded, tmp_path):
    """What the first restart wrote must not have grown together with the half line before it."""
    drawn(model, rows(), tmp_path, **SMALL)
    cut_last_line(tmp_path)
    drawn(model, rows(), tmp_path, **SMALL)
    prompts_forwarded.clear()
    assert drawn(model, rows(), tmp_path, **SMALL) == one_batch
    assert not prompts_forwarded


def test_samples_of_other_ranks_are_read(model, one_batch, prompts_forwarded, tmp_path):
    """A restart on fewer ranks finds the files of those that are gone."""
    drawn(model, rows(), tmp_path, **SMALL)
    (tmp_path / "round-0.rank0.jsonl").rename(tmp_path / "round-0.rank5.jsonl")
    prompts_forwarded.clear()
    assert drawn(model, rows(), tmp_path, **SMALL) == one_batch
    assert not prompts_forwarded


def test_the_file_says_what_was_drawn(model, one_batch, tmp_path):
    drawn(model, rows(), tmp_path, **SMALL)
    records = [json.loads(line) for line in (tmp_path / "round-0.rank0.jsonl").read_text().splitlines()]
    assert {record["prompt"]: [sample["ids"] for sample in record["samples"]] for record in records} == one_batch
    for record in records:
        texts = [TOKENIZER.decode(sample["ids"], skip_special_tokens=True) for sample in record["samples"]]
        assert [sample["text"] for sample in record["samples"]] == texts


# Rounds and instruction.


def test_every_draws_a_new_round(model, prompts_forwarded, tmp_path):
    """Steps 0 and 1 use one draw, 2 and 3 the next; behind the last step there is nothing to draw for."""
    made = sampler(rows("Why?", "Who?"), tmp_path, steps=4, every=2, **SMALL)
    found, calls = [], []
    for step in range(5):
        made.prepare(model, step)
        found.append(dict(made.drawn))
        calls.append(len(prompts_forwarded))
    assert calls == [6, 6, 12, 12, 12]
    assert found[0] == found[1] != found[2] == found[3]
    assert all(found[0][key] != found[2][key] for key in found[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["round-0.rank0.jsonl", "round-1.rank0.jsonl"]


def test_without_every_one_draw_serves_all_steps(model, prompts_forwarded, tmp_path):
    made = sampler(rows("Why?", "Who?"), tmp_path, steps=4, **SMALL)
    for step in range(4):
        made.prepare(model, step)
    assert len(prompts_forwarded) == 6


def test_a_round_draws_for_its_own_steps_only(model, tmp_path):
    some_rows = rows()
    plan = StepPlan([1.0] * 5, prompts_per_step=1, epochs=1, max_steps=None, seed=0)
    config = Sampling(every=2, **SMALL)
    made = Sampler(
        PlannedFeed(some_rows, plan), TOKENIZER, config, contexts=Contexts(config, [], 0), seed=0, max_length=512,
        folder=tmp_path, ledger=Ledger(), equal_calls=False,
    )  # fmt: skip
    for step, steps in ((0, (0, 1)), (2, (2, 3)), (4, (4,))):
        made.prepare(model, step)
        assert set(made.drawn) == {some_rows[index].example.key for s in steps for index in plan.rows(s)}


def test_a_restart_within_a_round_reads_that_round(model, prompts_forwarded, tmp_path):
    some_rows = rows("Why?", "Who?")
    made = sampler(some_rows, tmp_path, steps=4, every=2, **SMALL)
    for step in range(4):
        made.prepare(model, step)
    prompts_forwarded.clear()
    again = sampler(some_rows, tmp_path, steps=4, every=2, **SMALL)
    again.prepare(model, 3)
    assert again.drawn == made.drawn and not prompts_forwarded


@pytest.mark.parametrize("instruction", [None, "Be kind to strangers."])
def test_the_instruction_is_for_sampling_only(instruction, model, prompts_forwarded, tmp_path):
    some_rows = rows("Why?")
    made = sampler(some_rows, tmp_path, instruction=instruction, **SMALL)
    made.prepare(model, 0)
    assert prompts_forwarded == [encode_prompt(TOKENIZER, "Why?", instruction)] * 3
    assert ("Be kind to strangers." in TOKENIZER.decode(prompts_forwarded[0])) is bool(instruction)
    assert (
        made.with_samples(made.feed.all[0]).prompt_ids
        == some_rows[0].prompt_ids
        == tuple(encode_prompt(TOKENIZER, "Why?"))
    )
