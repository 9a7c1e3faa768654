"""What every objective of `align/objectives/` must do, on batches that `collate` has laid out as for the trainer."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from align import objectives
from align.data.collate import collate
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.objectives import NEGATIVE, POSITIVE, SAMPLE, Batch, Objective, join_step
from align.objectives._units import count_units, unit_weights
from align.schema import Reader

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = objectives.available()
# For each prompt: how many positives, negatives and samples it has, where the objective reads them.
COUNTS = ((2, 1, 3), (1, 3, 1), (3, 2, 2))
LONGEST = 13  # tokens
LOGPS = ("logps", "ref_logps", "behavior_logps", "ema_logps")
PER_TOKEN = ("mask", "step_label", "token_weight", *LOGPS)  # (..., N, T) each
# (name, role) that a method moves the other way near the reference, by design: see their docstrings
PULLS_OTHERWISE = {("apo_down", POSITIVE), ("discopop", POSITIVE), ("discopop", NEGATIVE), ("likra", NEGATIVE)}
PULLS_OTHERWISE |= {("negative_distillation", NEGATIVE)}  # all that a teacher would say there, not their own tokens

each_objective = pytest.mark.parametrize("name", NAMES)


def make(name: str) -> Objective:
    return objectives.load(name)()


def rows(objective: Objective) -> list[TokenizedRow]:
    """Rows with the roles that the objective reads only: others are never encoded."""
    generator = torch.Generator().manual_seed(1)
    result = []
    for prompt, (positives, negatives, samples) in enumerate(COUNTS):
        # Samples come last, as the sampler appends them; given responses come in any order.
        order = [*[NEGATIVE] * negatives, *[POSITIVE] * positives]
        order = order[prompt % 2 :] + order[: prompt % 2] + [SAMPLE] * samples
        responses = []
        for role in order:
            if role in objective.roles():
                length = (
                    LONGEST
                    if prompt == 0 and not responses
                    else int(torch.randint(1, LONGEST, (), generator=generator))
                )
                weight = 1.0 if role == SAMPLE else 0.5 + float(torch.rand((), generator=generator))
                noise = 0.3 * float(torch.rand((), generator=generator))
                reward = role + noise if "rewards" in objective.needs else None
                responses.append(TokenizedResponse(tuple(range(length)), role, weight, reward))
        result.append(TokenizedRow((0,) * (prompt + 1), tuple(responses), None))
    return result


def batch_of(objective: Objective, some_rows: list[TokenizedRow], spread: float = 0.5) -> Batch:
    """The batch the trainer builds of some rows, with random log-probs; log-ratios a token vary by `spread` nats."""
    micro = collate(some_rows, pad_id=0)
    generator = torch.Generator().manual_seed(2)
    mask, shape = micro.mask, micro.mask.shape
    logps = -0.05 - 3 * torch.rand(shape, generator=generator)

    def near() -> Tensor:
        return (logps + spread * torch.randn(shape, generator=generator)).clamp(max=-0.01) * mask

    optional = {
        "reference": {"ref_logps": near()},
        "behavior": {"behavior_logps": near()},
        "ema": {"ema_logps": torch.stack([near(), near()])},
    }
    asked = dict(item for need in objective.needs for item in optional.get(need, {}).items())
    return Batch(
        logps=logps * mask,
        mask=mask,
        role=micro.role,
        prompt=micro.prompt,
        pairs=micro.pairs,
        weight=micro.weight,
        reward=micro.reward,
        step_label=torch.randint(-1, 2, shape, generator=generator) * mask,
        token_weight=(0.5 + torch.rand(shape, generator=generator)) * mask,
        extras={name: near() for name in objective.extras},
        **asked,
    )


def fields_of(batch: Batch, change) -> dict[str, Tensor | dict]:
    """The batch's tensors of shape (..., N, T), each as `change` makes it."""
    changed = {name: change(getattr(batch, name)) for name in PER_TOKEN if getattr(batch, name) is not None}
    return changed | {"extras": {name: change(values) for name, values in batch.extras.items()}}


def in_one_step(objective: Objective, *batches: Batch) -> list[Batch]:
    """The batches as the micro-batches of one optimiser step, the way the trainer couples them."""
    parts = [objective.collect(batch) for batch in batches]
    if "mismatched" in objective.needs:
        parts[0] = parts[0] | {"mismatched": torch.tensor([1.0, -0.5, 0.7])}
    steps, _ = join_step(objective, parts, {})
    return [dataclasses.replace(batch, step=step) for batch, step in zip(batches, steps, strict=True)]


@pytest.fixture
def objective(name) -> Objective:
    return make(name)


@pytest.fixture
def batch(objective) -> Batch:
    made = batch_of(objective, rows(objective))
    assert len({*made.mask.shape, len(made.pairs)}) == 3, "N, T and P must differ, or swapped axes go unseen"
    return made


def weighted_sum(objective: Objective, batch: Batch) -> Tensor:
    """What the trainer makes of the losses before it divides by the number of units."""
    return (objective(batch).losses * unit_weights(batch, objective.normalize_by)).sum()


def gradient(objective: Objective, batch: Batch) -> Tensor:
    logps = batch.logps.detach().clone().requires_grad_()
    return torch.autograd.grad(weighted_sum(objective, dataclasses.replace(batch, logps=logps)), logps)[0]


def over_tokens(batch: Batch, change) -> Batch:
    """The batch with `change` applied to each of its (N, T) log-prob tensors."""
    given = [name for name in LOGPS if getattr(batch, name) is not None]
    return dataclasses.replace(batch, **{name: change(getattr(batch, name)) for name in given})


def assert_same_losses(objective: Objective, one: Batch, other: Batch) -> None:
    torch.testing.assert_close(objective(one).losses, objective(other).losses)
    for name, values in objective(one).metrics.items():
        torch.testing.assert_close(
            values, objective(other).metrics[name], msg=lambda text, name=name: f"{name}: {text}"
        )


def test_there_are_objectives():
    assert {"d2o", "dpo"} <= set(NAMES)


@each_objective
def test_padding_columns_change_nothing(objective, batch):
    def padded(values: Tensor) -> Tensor:
        return torch.cat([values, torch.zeros(*values.shape[:-1], 3, dtype=values.dtype)], dim=-1)

    assert_same_losses(objective, batch, dataclasses.replace(batch, **fields_of(batch, padded)))


@each_objective
def test_order_of_responses_does_not_matter(objective, batch):
    order = torch.randperm(len(batch.role), generator=torch.Generator().manual_seed(3))
    assert not torch.equal(order, order.sort().values)
    given = [name for name in ("role", "prompt", "weight", "reward") if getattr(batch, name) is not None]
    fields = {name: getattr(batch, name)[order] for name in given} | fields_of(batch, lambda t: t[..., order, :])
    pairs = order.argsort()[batch.pairs].flip(0)
    shuffled = dataclasses.replace(batch, **fields, pairs=pairs)
    torch.testing.assert_close(weighted_sum(objective, shuffled), weighted_sum(objective, batch))
    one, other = objective(batch), objective(shuffled)
    torch.testing.assert_close(other.losses.sort().values, one.losses.sort().values)
    for name, values in one.metrics.items():
        torch.testing.assert_close(other.metrics[name].sort().values, values.sort().values)
    torch.testing.assert_close(gradient(objective, shuffled), gradient(objective, batch)[order])


@each_objective
@pytest.mark.parametrize("cut", [1, 2])
def test_losses_of_disjoint_prompts_add_up(cut, objective, batch):
    """Else the result would depend on how a step is cut into micro-batches and ranks."""
    parts = []
    for some_rows, chosen in (
        (rows(objective)[:cut], batch.prompt < cut),
        (rows(objective)[cut:], batch.prompt >= cut),
    ):
        part = batch_of(objective, some_rows)
        width = part.mask.shape[1]
        same = fields_of(batch, lambda t, chosen=chosen, width=width: t[..., chosen, :width])
        assert torch.equal(part.mask, same["mask"])
        parts.append(dataclasses.replace(part, **same))
    whole = in_one_step(objective, batch)[0]
    parts = in_one_step(objective, *parts)
    expected, found = objective(whole), [objective(part) for part in parts]
    assert sum(len(part.losses) for part in found) == len(expected.losses)
    torch.testing.assert_close(sum(weighted_sum(objective, part) for part in parts), weighted_sum(objective, whole))
    for part, chosen in zip(parts, (batch.prompt < cut, batch.prompt >= cut), strict=True):
        wanted = gradient(objective, whole)[chosen, : part.mask.shape[1]]
        torch.testing.assert_close(gradient(objective, part), wanted)
    for name, values in expected.metrics.items():
        pieces = torch.cat([part.metrics[name] for part in found])
        torch.testing.assert_close(pieces.sort().values, values.sort().values)


@each_objective
def test_masked_tokens_have_no_say(objective, batch):
    """Neither value nor gradient, even where their log-probs hold what another batch has left there."""
    assert not batch.mask.all()
    generator = torch.Generator().manual_seed(4)

    def spoiled(values: Tensor) -> Tensor:
        garbage = -0.01 - 50 * torch.rand(values.shape, generator=generator)
        return torch.where(batch.mask, values, garbage)

    dirty = over_tokens(batch, spoiled)
    assert_same_losses(objective, batch, dirty)
    found = gradient(objective, dirty)
    assert (found[~batch.mask] == 0).all()
    assert (found[batch.mask] != 0).any()


@each_objective
@pytest.mark.parametrize("role", [POSITIVE, SAMPLE, NEGATIVE])
def test_loss_pulls_in_the_direction_of_the_role(role, name, objective):
    """Near the reference, where training begins: likelier positives and samples are better, negatives worse."""
    if role not in objective.roles() or (name, role) in PULLS_OTHERWISE:
        pytest.skip("the objective does not read this role, or moves it otherwise by design")
    batch = batch_of(objective, rows(objective), spread=0.01)
    found = gradient(objective, batch)[batch.role == role] * (-1 if role == NEGATIVE else 1)
    assert (found <= 0).all()
    assert (found < 0).any()


EXTREMES = {
    "impossible tokens": (-1e4, -1.0),
    "log-ratios far up": (-1.0, -1e4),
    "log-ratios far down": (-1e3, -1e-3),
    "impossible to both": (-1e4, -1e4),
}


@each_objective
@pytest.mark.parametrize("case", EXTREMES)
@pytest.mark.parametrize("only", [None, POSITIVE, SAMPLE, NEGATIVE])
def test_extremes_are_finite(case, only, objective, batch):
    """On all responses, or on those of one role with the others opposite."""
    policy, reference = EXTREMES[case]
    here = torch.ones_like(batch.mask) if only is None else (batch.role == only)[:, None].expand(batch.mask.shape)
    extreme = dataclasses.replace(batch, logps=torch.where(here, policy, reference) * batch.mask)
    for name in LOGPS[1:]:
        if getattr(batch, name) is not None:
            values = (torch.where(here, reference, policy) * batch.mask).expand(getattr(batch, name).shape)
            extreme = dataclasses.replace(extreme, **{name: values})
    assert objective(extreme).losses.isfinite().all()
    assert gradient(objective, extreme).isfinite().all()


@each_objective
def test_gradient_is_that_of_the_loss(objective, batch):
    """float64 gradcheck where the objective keeps float64; else slopes along random directions in float32."""
    if objective.has_stop_gradient:
        pytest.skip("by design it is not; the objective's own test derives it by hand")
    batch = in_one_step(objective, batch)[0]
    double = over_tokens(batch, Tensor.double)
    if objective(double).losses.dtype == torch.float64:
        logps = double.logps.requires_grad_()
        assert torch.autograd.gradcheck(lambda x: objective(dataclasses.replace(double, logps=x)).losses, logps)
        return
    found, generator, step = gradient(objective, batch).double(), torch.Generator().manual_seed(5), 2e-2
    for _ in range(10):
        direction = torch.randn(batch.mask.shape, generator=generator) * batch.mask
        ahead, behind = (
            weighted_sum(objective, dataclasses.replace(batch, logps=batch.logps + sign * step * direction)).item()
            for sign in (1, -1)
        )
        slope = (found * direction).sum().item()
        assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=5e-3, abs=1e-3)


@each_objective
def test_bf16_is_lifted_before_it_is_summed(objective, batch):
    half = over_tokens(batch, Tensor.bfloat16)
    result = objective(half)
    assert result.losses.dtype == torch.float32
    torch.testing.assert_close(result.losses, objective(over_tokens(half, Tensor.float)).losses)


@each_objective
def test_one_loss_a_unit(objective, batch):
    losses, unit = objective(batch).losses, objective.normalize_by
    assert unit in objectives.UNITS
    assert losses.shape == (count_units(batch, unit),) == unit_weights(batch, unit).shape
    assert len(losses) > 0


@each_objective
def test_metrics_are_detached_and_flat(objective, batch):
    result = objective(dataclasses.replace(batch, logps=batch.logps.clone().requires_grad_()))
    assert result.losses.requires_grad
    for name, values in result.metrics.items():
        assert not values.requires_grad and values.ndim == 1, name
        assert values.isfinite().all(), name


@each_objective
def test_is_a_documented_frozen_dataclass(name, objective):
    cls = type(objective)
    assert vars(cls)["__dataclass_params__"].frozen
    assert cls.__doc__ and not cls.__doc__.startswith(f"{cls.__name__}("), "dataclass writes such a one by itself"
    assert set(objective.needs) <= set(objectives.NEEDS)
    assert "https://" in (importlib.import_module(cls.__module__).__doc__ or "")
    with pytest.raises(dataclasses.FrozenInstanceError):
        objective.needs = ()


@each_objective
def test_hyper_parameters_say_what_they_mean_and_allow(name, objective):
    for field in dataclasses.fields(objective):
        assert field.metadata.get("doc", "").endswith("."), f"{field.name} needs a sentence"
        bounded = any(field.metadata.get(key) is not None for key in ("ge", "gt", "le", "lt", "choices"))
        assert bounded or isinstance(field.default, bool), f"{field.name} needs bounds"
    reader = Reader(lambda path: name, lambda path: ".".join(map(str, path)))
    assert reader.section(type(objective), dataclasses.asdict(objective), ()) == objective
    assert not reader.errors, "a default outside its own range"


@each_objective
def test_has_a_test_and_a_recipe(name):
    assert (ROOT / "tests" / "objectives" / f"test_{name}.py").is_file()
    recipe = ROOT / "recipes" / f"{name}.yaml"
    assert recipe.is_file()
    assert yaml.safe_load(recipe.read_text())["objective"]["name"] == name
