"""What objectives read off the logits beside the target's log-prob, against the plain way: all logits, one response
at a time, in Python loops and autograd; through chunks, an adapter on the head and recomputed activations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from align.data.collate import MicroBatch, collate
from align.data.examples import Example
from align.data.layout import PACKED
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.objectives import EXTRAS
from align.reference.teacher import Teacher
from align.scoring import head as lm_head
from align.scoring.extras import SMALLEST_REST, _alternatives, entropy, extra, top_mass
from align.scoring.logprobs import response_logps, response_scores
from align.scoring.support import use_packed
from tests import tiny

VOCABULARY, PAD = 37, 0
K, SEED, STEP = 4, 11, 3
MODELS = ("linear head", "adapter on the head")


def build(name: str = "linear head", seed: int = 0) -> nn.Module:
    """A tiny Llama; its logits are spread enough for some tokens to be far likelier than others."""
    model = tiny.llama(seed, vocab_size=VOCABULARY, pad_token_id=PAD, eos_token_id=1, initializer_range=0.25)
    if name == "adapter on the head":
        config = LoraConfig(r=3, target_modules=["v_proj", "lm_head"], task_type="CAUSAL_LM")
        model = get_peft_model(model, config)
        generator = torch.Generator().manual_seed(1)
        for key, weight in model.named_parameters():
            if "lora_" in key:
                weight.data = 0.2 * torch.randn(weight.shape, generator=generator)
    return model.eval()


def make_row(prompt: str, prompt_ids: tuple[int, ...], *responses: tuple[int, ...]) -> TokenizedRow:
    tokenized = tuple(TokenizedResponse(ids, -1 if n else 1) for n, ids in enumerate(responses))
    return TokenizedRow(prompt_ids, tokenized, Example(prompt, (), "tiny", "rows.jsonl:1"))


@pytest.fixture(scope="module")
def rows() -> list[TokenizedRow]:
    """Unequal lengths and numbers of responses; tokens that come again, also the pad id, in prompt and response."""
    return [
        make_row("a", (5, 6, 5, 9, 0), (7, 7, 5, 30, 7, 1), (9,)),
        make_row("b", (12,), (12, 12, 0, 3, 4, 12, 0, 17, 1)),
        make_row("c", (8, 9, 10, 11, 12, 13, 14, 8), (20, 21), (8, 20, 8, 1), (22, 23, 24)),
    ]


@pytest.fixture(scope="module")
def batch(rows) -> MicroBatch:
    return collate(rows, PAD)


@pytest.fixture(params=[1, 5, 10**6])
def chunk(request, monkeypatch) -> int:
    """How many positions pass the head at once."""
    monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", request.param * VOCABULARY)
    return request.param


def scores(
    model: nn.Module, batch: MicroBatch, *names: str, k: int = K, seed: int = SEED, step: int = STEP
) -> tuple[Tensor, dict[str, Tensor]]:
    given = {"k": k, "seed": seed, "step": step, "teacher": made_up_teacher(batch)}
    return response_scores(model, batch, {name: extra(name, batch, **given) for name in names})


def made_up_teacher(batch: MicroBatch) -> Callable[[slice], Tensor]:
    """Some distribution at each position, whatever the layout."""
    drawn = torch.randn(len(batch.targets), VOCABULARY, generator=torch.Generator().manual_seed(9)).softmax(-1)
    return lambda at: drawn[at].to(batch.targets.device)


def one(model: nn.Module, batch: MicroBatch, name: str, **options) -> Tensor:
    """(N, T) of one extra alone."""
    return scores(model, batch, name, **options)[1][name]


def tokens_of(rows: list[TokenizedRow]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    return [(row.prompt_ids, response.ids) for row in rows for response in row.responses]


def all_logits(model: nn.Module, rows: list[TokenizedRow]) -> list[Tensor]:
    """(tokens, V) for each response, forwarded alone: no padding, no chunks."""
    found = []
    for prompt_ids, ids in tokens_of(rows):
        logits = model(input_ids=torch.tensor([[*prompt_ids, *ids]]), use_cache=False).logits[0]
        found.append(logits[len(prompt_ids) - 1 : -1])
    return found


def padded(values: list[Tensor]) -> Tensor:
    return nn.utils.rnn.pad_sequence(values, batch_first=True)


def gradients(values: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Of a sum in which each token has a weight of its own."""
    weights = torch.randn(values.shape, generator=torch.Generator().manual_seed(4))
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    return dict(zip(trained, torch.autograd.grad((values * weights).sum(), list(trained.values())), strict=True))


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys() and found
    for name, values in expected.items():
        assert values.any(), f"{name} has no gradient to compare"
        scale = max(1.0, values.abs().max().item())
        torch.testing.assert_close(found[name] / scale, values / scale, rtol=1e-4, atol=1e-5)


def recomputing(model: nn.Module) -> nn.Module:
    """With gradient checkpointing, as the trainer has it."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


# entropy and top-k


@pytest.mark.parametrize("name", MODELS)
def test_entropy_and_its_gradient_are_those_of_all_logits(name, chunk, batch, rows):
    model = recomputing(build(name))
    expected = padded([-(z.softmax(-1) * z.log_softmax(-1)).sum(-1) for z in all_logits(model, rows)])
    found = one(model, batch, "entropy")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[~batch.mask] == 0).all() and found[batch.mask].std() > 0.1
    assert_same_gradients(gradients(found, model), gradients(expected, model))


def test_entropy_and_top_mass_by_hand():
    """p = (1/2, 1/4, 1/4): 3/2 log 2; the likeliest has 1/2, the two likeliest 3/4, all 1."""
    logits = torch.tensor([[0.25, 0.5, 0.25], [1.0, 1e-30, 1e-30]]).log() + 50
    assert entropy(logits).tolist() == pytest.approx([1.5 * math.log(2), 0.0], abs=1e-5)
    for k, mass in ((1, 0.5), (2, 0.75), (3, 1.0)):
        assert top_mass(logits, k).tolist() == pytest.approx([mass, 1.0], abs=1e-5)


# concentration


@pytest.mark.parametrize("name", MODELS)
def test_concentration_is_that_of_all_logits(name, chunk, batch, rows):
    model = build(name)
    expected = padded([z.softmax(-1).double().square().sum(-1).log() for z in all_logits(model, rows)])
    found = one(model, batch, "concentration")
    assert found.dtype == torch.float32 and found.shape == batch.mask.shape
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-5, atol=1e-5)
    assert (found[~batch.mask] == 0).all()
    assert (found[batch.mask] > -math.log(VOCABULARY)).all() and (found[batch.mask] < 0).all()
    assert found[batch.mask].std() > 0.1, "positions too alike to tell them apart"


def test_concentration_by_hand(batch):
    """p = (1/2, 1/4, 1/4): log(1/4 + 1/16 + 1/16) = log(3/8). Logits of a thousand do no harm."""
    read = extra("concentration", batch, k=1, seed=0, step=0)
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    assert read(logits, slice(0, 1)).item() == pytest.approx(math.log(3 / 8), abs=1e-6)
    assert read(logits + 1000, slice(0, 1)).item() == pytest.approx(math.log(3 / 8), abs=1e-3)
    assert read(torch.tensor([[1000.0, 0.0, -1000.0]]), slice(0, 1)).item() == 0.0


@pytest.mark.parametrize("name", MODELS)
def test_concentration_has_no_gradient(name, chunk, batch):
    """A loss that uses it has the gradient it has with a constant in its place."""
    model = build(name)
    logps, extras = scores(model, batch, "concentration")
    found = gradients(logps * 2 + extras["concentration"] * 3, model)
    assert_same_gradients(found, gradients(response_logps(model, batch) * 2, model))


# soft unlikelihood


@pytest.mark.parametrize("name", MODELS)
def test_soft_unlikelihood_and_its_gradient_are_those_of_all_logits(name, chunk, batch, rows):
    """By loops over the vocabulary, in double precision; the teacher has a head of its own and no gradient."""
    model, other = recomputing(build(name)), build(seed=7)
    expected = []
    for z, of_teacher in zip(all_logits(model, rows), all_logits(other, rows), strict=True):
        p, n = z.double().softmax(-1), of_teacher.detach().double().softmax(-1)
        terms = [[-n[at, v] * torch.log(1 - p[at, v]) for v in range(VOCABULARY)] for at in range(len(z))]
        expected.append(torch.stack([sum(own) for own in terms]))
    expected = padded(expected)
    teacher = Teacher(other)
    read = extra("soft_unlikelihood", batch, k=0, seed=0, step=0, teacher=teacher.distributions(batch))
    found = response_scores(model, batch, {"soft": read})[1]["soft"]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    assert (found[~batch.mask] == 0).all() and found[batch.mask].std() > 0.01
    assert_same_gradients(gradients(found, model), gradients(expected.float(), model))
    assert all(weight.grad is None for weight in other.parameters())


def test_a_teacher_keeps_no_distribution(batch):
    """Between its calls there are the last hidden states (M, H), nothing of the size of the vocabulary."""
    read = Teacher(build(seed=7)).distributions(batch)
    held = [cell.cell_contents for cell in read.__wrapped__.__closure__]
    sizes = [value.shape for value in held if isinstance(value, Tensor)]
    assert sizes == [(len(batch.targets), 32)]
    assert read(slice(3, 8)).shape == (5, VOCABULARY)
    torch.testing.assert_close(read(slice(3, 8)).sum(-1), torch.ones(5))


# alternatives


def drawn_tokens(values: Tensor, logits: list[Tensor], rows: list[TokenizedRow]) -> list[list[int]]:
    """Which token each log-prob (N, T) is of: the only one of the vocabulary that has it."""
    found = []
    for row, z in zip(values.detach(), logits, strict=True):
        distance = (row[: len(z), None] - z.detach().log_softmax(-1)).abs()  # (tokens, V)
        best, second = distance.sort(-1).values[:, :2].unbind(-1)
        assert (best < 1e-4).all(), "no token has such a log-prob"
        assert (second > 3 * best).all(), "two tokens are equally likely"
        found.append(distance.argmin(-1).tolist())
    return found


def likeliest(logits: Tensor, target: int, k: int) -> list[int]:
    """The k likeliest tokens but the target, by sorting."""
    order = sorted(range(len(logits)), key=lambda token: -logits[token].item())
    return [token for token in order if token != target][:k]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("k", [1, 4, 36, 1000])
def test_alternatives_are_likely_and_never_the_target(name, k, chunk, rows):
    """36 are all but the target; more than there are is all of them. One response is the model's own, greedy."""
    model = build(name)
    rows = [*rows, greedy(model, 6)]
    batch = collate(rows, PAD)
    logits = all_logits(model, rows)
    targets_among_likeliest = 0
    with torch.no_grad():
        for step in range(5):
            drawn = drawn_tokens(one(model, batch, "alternatives", k=k, step=step), logits, rows)
            for (_, ids), tokens, z in zip(tokens_of(rows), drawn, logits, strict=True):
                assert len(tokens) == len(ids)
                for target, token, at in zip(ids, tokens, z, strict=True):
                    assert token != target and token in likeliest(at, target, k)
                    targets_among_likeliest += target in likeliest(at, -1, k)
    assert targets_among_likeliest >= 5 * 6, "the target is never in question"


def greedy(model: nn.Module, length: int) -> TokenizedRow:
    """A response whose every token is the likeliest."""
    ids = [5, 6]
    with torch.no_grad():
        for _ in range(length):
            ids.append(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax().item())
    return make_row("greedy", (5, 6), tuple(ids[2:]))


def test_alternatives_are_drawn_by_their_probability():
    """20000 draws of one position: the target is the likeliest token, then come (4, 3, 2, 1) / 10 and a sixth left out.

    Five standard deviations of a share are 5 sqrt(p (1 - p) / 20000) < 0.018.
    """
    count = 20_000
    row = make_row("long", (2,), (3,) * count)
    batch = collate([row], PAD)
    logits = torch.tensor([0.1, 4.0, 1.0, 90.0, 3.0, 2.0]).log()[None].expand(count, -1)
    values = extra("alternatives", batch, k=4, seed=1, step=1)(logits, slice(0, count))
    shares = Counter(round(value, 3) for value in (values.exp() * 100.1).tolist())
    assert shares.keys() == {4.0, 3.0, 2.0, 1.0}
    for weight, often in shares.items():
        assert often / count == pytest.approx(weight / 10, abs=0.018)


@pytest.mark.parametrize("k", [5, 6, 1000])
def test_alternatives_at_the_ends_of_the_draw(k):
    """0 gives the likeliest but the target, a draw beyond the (rounded) sum the least likely, never the target.

    Also where all logits are far below 0.
    """
    batch = collate([make_row("a", (2,), (3, 3))], PAD)
    logits = torch.tensor([0.1, 4.0, 1.0, 90.0, 3.0, 2.0]).log().expand(2, -1) - 1000
    values = _alternatives(batch, k, torch.tensor([0.0, 1.001]))(logits, slice(0, 2))
    assert (values.exp() * 100.1).tolist() == pytest.approx([4.0, 0.1], rel=1e-3)


def test_alternatives_stay_in_the_backward_pass():
    """Read a second time, on logits that recomputing has changed, the token is still the one of the first time."""
    batch = collate([make_row("a", (2,), (3, 3))], PAD)
    read = _alternatives(batch, 1, torch.tensor([0.5, 0.5]))
    first, second = torch.eye(6)[[4, 5]], torch.eye(6)[[0, 1]]
    assert (read(first, slice(0, 2)) == first.log_softmax(-1).max(-1).values).all()
    assert (read(second, slice(0, 2)) == second.log_softmax(-1).min(-1).values).all()


def test_alternatives_of_a_model_are_drawn_by_their_probability(batch, rows):
    """Over 600 steps and at each position, independently of the next position."""
    model, steps = build(), 600
    logits = all_logits(model, rows)
    counts = [[Counter() for _ in z] for z in logits]
    with torch.no_grad():
        hidden = torch.cat(logits)
        for step in range(steps):
            flat = extra("alternatives", batch, k=K, seed=SEED, step=step)(hidden, slice(0, len(hidden)))
            values = padded(list(flat.split([len(z) for z in logits])))
            for places, tokens in zip(counts, drawn_tokens(values, logits, rows), strict=True):
                for place, token in zip(places, tokens, strict=True):
                    place[token] += 1
    for (_, ids), places, z in zip(tokens_of(rows), counts, logits, strict=True):
        for target, place, at in zip(ids, places, z, strict=True):
            tokens = likeliest(at, target, K)
            shares = at[tokens].detach().softmax(-1).tolist()
            for token, share in zip(tokens, shares, strict=True):
                spread = math.sqrt(share * (1 - share) / steps)
                assert place[token] / steps == pytest.approx(share, abs=5 * spread + 2 / steps)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_gradient_of_alternatives(name, checkpointing, chunk, batch, rows):
    """Equal to autograd's through all logits, the drawn token held: the draw itself has none."""
    model = build(name)
    logits = all_logits(model, rows)
    with torch.no_grad():
        drawn = drawn_tokens(one(model, batch, "alternatives"), logits, rows)
    picked = [
        z.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0] for z, ids in zip(logits, drawn, strict=True)
    ]
    expected = padded(picked)
    wanted = gradients(expected, model)
    found = one(recomputing(model) if checkpointing else model, batch, "alternatives")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(found, model), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_alternatives_do_not_depend_on_the_micro_batch(name, chunk, batch, rows):
    """Row by row, in another order, beside a far longer row: the same tokens for the same responses."""
    model = build(name)
    long = make_row("long", (3,) * 20, (4,) * 30)
    with torch.no_grad():
        together = one(model, batch, "alternatives")
        alone = torch.cat([wide(one(model, collate([row], PAD), "alternatives"), 30) for row in rows])
        turned = one(model, collate(rows[::-1], PAD), "alternatives")
        beside = one(model, collate([long, *rows], PAD), "alternatives")
    torch.testing.assert_close(alone, wide(together, 30), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(beside[1:], wide(together, 30), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned, together[[3, 4, 5, 2, 0, 1]], rtol=1e-5, atol=1e-5)


def wide(values: Tensor, width: int) -> Tensor:
    return nn.functional.pad(values, (0, width - values.shape[1]))


def test_alternatives_do_not_depend_on_the_chunk(batch, monkeypatch):
    model, found = build(), []
    for size in (1, 2, 7, 10**6):
        monkeypatch.setattr(lm_head, "LOGITS_AT_ONCE", size * VOCABULARY)
        with torch.no_grad():
            found.append(one(model, batch, "alternatives"))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


def test_alternatives_of_another_step_or_seed(batch):
    """The same again; other draws at the next step, under the next seed, and not the one for the other."""
    model = build()
    with torch.no_grad():
        draws = {
            (seed, step): one(model, batch, "alternatives", k=10, seed=seed, step=step)
            for seed in (1, 2, 12)
            for step in (1, 2, 21)
        }
        for (seed, step), values in draws.items():
            assert torch.equal(one(model, batch, "alternatives", k=10, seed=seed, step=step), values)
    every = list(draws.values())
    for index, values in enumerate(every):
        for other in every[index + 1 :]:
            share = (values != other)[batch.mask].float().mean()
            assert share > 0.2, "draws of two steps are (nearly) the same"


def test_alternatives_do_not_touch_the_generator_of_the_run(batch):
    """Else dropout and sampling would depend on how a step is cut."""
    model = build()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    scores(model, batch, *EXTRAS)
    assert torch.equal(torch.get_rng_state(), before)


def test_responses_alike_are_drawn_for_apart():
    """Two equal responses of a prompt, and the same one behind another prompt's name."""
    ids = (20, 21, 22, 23, 24, 25, 26, 27)
    batch = collate([make_row("a", (5,), ids, ids), make_row("b", (5,), ids)], PAD)
    with torch.no_grad():
        first, second, third = one(build(), batch, "alternatives", k=10)
    assert not torch.equal(first, second) and not torch.equal(first, third) and not torch.equal(second, third)


def test_stand_in_of_a_rank_without_rows():
    """It goes through the same code, on the batch's device, and gives no nan."""
    empty = collate([], PAD)
    logps, extras = scores(build(), empty, *EXTRAS)
    assert extras.keys() == EXTRAS.keys()
    assert all(values.shape == (1, 1) and values.isfinite().all() for values in (logps, *extras.values()))
    logits = torch.zeros(1, VOCABULARY, device="meta")
    assert one_chunk("alternatives", empty.to(torch.device("meta")), logits).device.type == "meta"


def test_on_the_device_of_the_batch(batch):
    logits = torch.zeros(len(batch.targets), VOCABULARY, device="meta")
    for name in EXTRAS:
        assert one_chunk(name, batch.to(torch.device("meta")), logits).device.type == "meta"


def one_chunk(name: str, batch: MicroBatch, logits: Tensor) -> Tensor:
    read = extra(name, batch, k=K, seed=SEED, step=STEP, teacher=made_up_teacher(batch))
    return read(logits, slice(0, len(logits)))


# repeats


def naive_repeats(model: nn.Module, rows: list[TokenizedRow]) -> Tensor:
    """(N, T): a loop over positions and the set of tokens before each."""
    found = []
    for (prompt_ids, ids), logits in zip(tokens_of(rows), all_logits(model, rows), strict=True):
        values = []
        for place, target in enumerate(ids):
            p = logits[place].softmax(-1)
            earlier = {*prompt_ids, *ids[:place]} - {target}
            values.append(sum((-torch.log(1 - p[token]) for token in sorted(earlier)), torch.zeros(())))
        found.append(torch.stack(values))
    return padded(found)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_repeats_equal_a_loop(name, checkpointing, chunk, batch, rows):
    """Value and gradient of every trained weight."""
    model = build(name)
    expected = naive_repeats(model, rows)
    wanted = gradients(expected, model)
    found = one(recomputing(model) if checkpointing else model, batch, "repeats")
    assert found.dtype == torch.float32 and found.shape == batch.mask.shape
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found[~batch.mask] == 0).all() and expected.max() > 0.2
    assert_same_gradients(gradients(found, model), wanted)


def test_repeats_by_hand():
    """p = (1, 2, 3, 4) / 10 everywhere, prompt 1 1, response 2 1 2 1 beside a longer row; rests 0.8 and 0.7.

    2: {1} gives -log 0.8. 1: {2} (1 itself is the target) gives -log 0.7. 2: {1}. 1: {2}.
    Behind the prompt 3, response 1 2: {3} gives -log 0.6; {3, 1} gives -log 0.6 - log 0.8. 0 pads, and never counts.
    """
    batch = collate([make_row("a", (1, 1), (2, 1, 2, 1)), make_row("b", (3,), (1, 2))], pad_id=0)
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, -1)
    expected = [0.8, 0.7, 0.8, 0.7, 0.6, 0.48]
    assert one_chunk("repeats", batch, logits).exp().reciprocal().tolist() == pytest.approx(expected, abs=1e-6)


def test_the_first_token_behind_a_prompt_of_itself_has_no_candidates():
    batch = collate([make_row("a", (7,), (7, 7, 3))], PAD)
    with torch.no_grad():
        first, second, third = one(build(), batch, "repeats")[0].tolist()
    assert first == second == 0.0 and third > 0


def test_padding_never_counts(rows):
    """The pad id is the likeliest token of all, stands in no text, and half of the batch is padding."""
    model = build()
    model.lm_head.bias = nn.Parameter(torch.zeros(VOCABULARY))
    model.lm_head.bias.data[36] = 8.0
    few = collate([rows[0]], pad_id=36)
    many = collate([rows[0], make_row("long", (3,) * 20, (4,) * 30)], pad_id=36)
    with torch.no_grad():
        alone, beside = one(model, few, "repeats"), one(model, many, "repeats")[:2]
        torch.testing.assert_close(wide(alone, 30), beside, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(alone, naive_repeats(model, [rows[0]]), rtol=1e-4, atol=1e-5)
    assert alone.max() < 3, "-log(1 - p) of the pad id would be more"


def test_certain_repetition_is_finite():
    """p = 1 in float32: the value stops at -log of the smallest rest, and the gradient is no nan."""
    batch = collate([make_row("a", (1,), (2, 2))], PAD)
    logits = torch.tensor([[0.0, 500.0, 0.0], [0.0, 0.0, 500.0]], requires_grad=True)
    values = one_chunk("repeats", batch, logits)
    assert values.tolist() == pytest.approx([-math.log(SMALLEST_REST), 0.0], abs=1e-4)
    values.sum().backward()
    assert logits.grad.isfinite().all()


# all of them


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_are_those_without_extras(name, checkpointing, chunk, batch):
    """Value and gradient; and each extra is the same beside the others as alone."""
    model = build(name)
    plain, alone = response_logps(model, batch), {extra_name: one(model, batch, extra_name) for extra_name in EXTRAS}
    wanted = gradients(plain + 2 * alone["alternatives"] + 3 * alone["repeats"], model)
    logps, extras = scores(recomputing(model) if checkpointing else model, batch, *EXTRAS)
    torch.testing.assert_close(logps, plain, rtol=1e-6, atol=1e-6)
    assert list(extras) == list(EXTRAS)
    for extra_name, values in extras.items():
        torch.testing.assert_close(values, alone[extra_name], rtol=1e-6, atol=1e-6)
    assert_same_gradients(gradients(logps + 2 * extras["alternatives"] + 3 * extras["repeats"], model), wanted)


@pytest.mark.parametrize("name", MODELS)
def test_extras_that_go_unused_leave_the_gradient_alone(name, chunk, batch):
    model = build(name)
    logps, _ = scores(model, batch, *EXTRAS)
    assert_same_gradients(gradients(logps, model), gradients(response_logps(model, batch), model))


@pytest.mark.parametrize("name", MODELS)
def test_without_gradient(name, chunk, batch):
    model = build(name)
    with torch.no_grad():
        _, extras = scores(model, batch, *EXTRAS)
    assert not any(values.requires_grad for values in extras.values())
    _, learning = scores(model, batch, *EXTRAS)
    for extra_name, values in extras.items():
        torch.testing.assert_close(learning[extra_name].detach(), values, rtol=1e-6, atol=1e-6)


# packed


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_extras_are_those_of_the_padded_layout(name, checkpointing, chunk, batch, rows):
    """Value and gradient, also where responses of a prompt share its tokens: each has a history of its own."""
    model, packed = build(name), build(name)
    assert use_packed(packed, 64) is None
    logps, extras = scores(model, batch, *EXTRAS)
    wanted = gradients(logps + 2 * extras["alternatives"] + 3 * extras["repeats"], model)
    tree = collate(rows, PAD, PACKED)
    assert tree.tokens.input_ids.numel() < batch.tokens.input_ids.numel()
    found, others = scores(recomputing(packed) if checkpointing else packed, tree, *EXTRAS)
    torch.testing.assert_close(found, logps, rtol=1e-5, atol=1e-5)
    for extra_name, values in extras.items():
        torch.testing.assert_close(others[extra_name], values, rtol=1e-5, atol=1e-5)
    assert_same_gradients(gradients(found + 2 * others["alternatives"] + 3 * others["repeats"], packed), wanted)


@pytest.mark.parametrize("name", EXTRAS)
def test_what_is_read_of_logits_does_not_depend_on_the_layout(name, batch, rows):
    """The very same numbers, given the same logits; also of the stand-in."""
    logits = torch.randn(len(batch.targets), VOCABULARY, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal(one_chunk(name, batch, logits), one_chunk(name, collate(rows, PAD, PACKED), logits))
    empty = [collate([], PAD), collate([], PAD, PACKED)]
    assert torch.equal(*(one_chunk(name, batch, logits[:1]) for batch in empty))
