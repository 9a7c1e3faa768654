"""Log-probs through a head in tiles against log-softmax of all logits in float64; and what is never made or kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from align.scoring import products
from align.scoring.tiles import TargetLogps, Transform

M, H, V = 29, 16, 103
PLAIN = Transform()
TRANSFORMS = {
    "plain": PLAIN,
    "scaled": Transform(scale=0.3),
    "capped": Transform(cap=2.0),
    "both": Transform(scale=2.5, cap=3.0),
}
TILES = [(1, 1), (5, 7), (M, V), (M + 1, V + 1), (4, V), (1000, 10)]  # positions, words
TRAINING = [names for count in (1, 2, 3) for names in itertools.combinations(("hidden", "weight", "bias"), count)]


def tile(monkeypatch, positions: int, words: int) -> None:
    monkeypatch.setitem(products.TILE, "cpu", (positions, words))


@pytest.fixture(params=TILES, ids=str)
def shape(request, monkeypatch) -> tuple[int, int]:
    """Of a tile; some divide neither M nor V."""
    tile(monkeypatch, *request.param)
    return request.param


def case(spread: float = 1.0) -> dict[str, Tensor]:
    """Hidden states, weight, bias, and targets among which are the first and the last word."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(V, (M,), generator=generator)
    targets[0], targets[1], targets[-1] = 0, V - 1, V - 1
    return {
        "hidden": torch.randn(M, H, generator=generator) * spread,
        "weight": torch.randn(V, H, generator=generator) * 0.5,
        "bias": torch.randn(V, generator=generator),
        "targets": targets,
    }


def in_tiles(given: dict[str, Tensor], transform: Transform = PLAIN, bf16: bool = False) -> Tensor:
    names = ("hidden", "weight", "bias", "targets")
    return TargetLogps.apply(*(given.get(name) for name in names), transform, torch.is_grad_enabled(), bf16)


def in_double(given: dict[str, Tensor], transform: Transform = PLAIN) -> Tensor:
    """The plain way; of the transform, its own words: scale, then cap."""
    logits = torch.nn.functional.linear(given["hidden"], given["weight"], given.get("bias")) * transform.scale
    logits = torch.tanh(logits / transform.cap) * transform.cap if transform.cap else logits
    return logits.log_softmax(-1).gather(-1, given["targets"][:, None])[:, 0]


def double(given: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in given.items()}


def with_gradients(function, given: dict[str, Tensor], training: tuple[str, ...], transform: Transform) -> list[Tensor]:
    """Log-probs, and the gradient of their sum, each with a weight of its own, for what trains."""
    leaves = given | {name: given[name].clone().requires_grad_() for name in training}
    logps = function(leaves, transform)
    weights = torch.randn(len(logps), generator=torch.Generator().manual_seed(1)).to(logps.dtype)
    return [logps, *torch.autograd.grad((logps * weights).sum(), [leaves[name] for name in training])]


def assert_same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        scale = max(1.0, other.abs().max().item()) if other.numel() else 1.0
        torch.testing.assert_close(one.double() / scale, other.double() / scale, rtol=tolerance, atol=tolerance)


# value and gradient


@pytest.mark.parametrize("training", TRAINING, ids="+".join)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_equals_log_softmax(transform, training, shape):
    """Whatever trains; the weight frozen is another way than the weight training."""
    given, transform = case(), TRANSFORMS[transform]
    found = with_gradients(in_tiles, given, training, transform)
    assert found[0].dtype == torch.float32
    assert_same(found, with_gradients(in_double, double(given), training, transform))


@pytest.mark.parametrize("training", [("hidden",), ("hidden", "weight")], ids="+".join)
def test_without_a_bias(training, shape):
    given = {name: value for name, value in case().items() if name != "bias"}
    found = with_gradients(in_tiles, given, training, PLAIN)
    assert_same(found, with_gradients(in_double, double(given), training, PLAIN))


def test_without_gradient(shape):
    given = case() | {"hidden": case()["hidden"].requires_grad_()}
    with torch.no_grad():
        found = in_tiles(given)
    assert not found.requires_grad
    assert_same([found], [in_double(double(given)).detach()])


def test_transforms_are_at_work():
    values = torch.linspace(-6, 6, 5)
    for name in ("scaled", "capped", "both"):
        assert (TRANSFORMS[name](values) - values).abs().max() > 1


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_slope_is_the_derivative(transform):
    raw = torch.linspace(-4, 4, 9, dtype=torch.double).requires_grad_()
    logits = TRANSFORMS[transform](raw)
    (expected,) = torch.autograd.grad(logits.sum(), raw)
    found = torch.as_tensor(TRANSFORMS[transform].slope(logits), dtype=raw.dtype).expand_as(raw)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("training", [("hidden",), ("hidden", "weight", "bias")], ids="+".join)
@pytest.mark.parametrize("transform", ["plain", "capped"])
def test_logits_of_ten_thousands(transform, training, shape):
    """The largest word may stand in any block, and the target far below it: no nan, and the right values."""
    given, transform = case(spread=1e4), TRANSFORMS[transform]
    found = with_gradients(in_tiles, given, training, transform)
    assert all(values.isfinite().all() for values in found)
    assert transform.cap or found[0].min() < -1e4
    assert_same(found, with_gradients(in_double, double(given), training, transform), tolerance=1e-4)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("training", [("hidden",), ("hidden", "weight")], ids="+".join)
def test_logits_that_rise_or_fall_from_block_to_block(order, training, monkeypatch):
    """The sum is rescaled at every block, or at none."""
    tile(monkeypatch, 5, 7)
    given = case() | {"bias": torch.linspace(-200, 200, V) * order}
    found = with_gradients(in_tiles, given, training, PLAIN)
    assert_same(found, with_gradients(in_double, double(given), training, PLAIN))


@pytest.mark.parametrize("training", [("hidden",), ("hidden", "weight", "bias")], ids="+".join)
def test_no_positions(training, shape):
    given = case()
    given = given | {"hidden": given["hidden"][:0], "targets": given["targets"][:0]}
    logps, of_hidden, *others = with_gradients(in_tiles, given, training, PLAIN)
    assert logps.shape == (0,) and of_hidden.shape == (0, H)
    assert [values.shape for values in others] == [given[name].shape for name in training[1:]]
    assert not any(values.any() for values in others)


@pytest.mark.parametrize("token", [V, V + 70])
def test_a_token_outside_the_vocabulary(token, shape):
    given = case()
    given["targets"][3] = token
    with pytest.raises(IndexError, match=f"token {token} is outside the model's vocabulary of {V}"):
        in_tiles(given)


def test_hidden_states_in_bf16_and_a_weight_in_float32(shape):
    """As autocast has it: products are float32's, and the gradient comes back in bf16."""
    given = case()
    given["hidden"] = given["hidden"].bfloat16()
    for training in (("hidden",), ("hidden", "weight", "bias")):
        found = with_gradients(in_tiles, given, training, PLAIN)
        expected = with_gradients(in_double, double(given), training, PLAIN)
        assert [values.dtype for values in found] == [
            torch.float32,
            torch.bfloat16,
            *[torch.float32] * (len(found) - 2),
        ]
        assert_same(found[:1] + found[2:], expected[:1] + expected[2:])
        assert_same(found[1:2], expected[1:2], tolerance=1e-2)


def test_all_in_bf16(shape):
    given = {name: value.bfloat16() if value.is_floating_point() else value for name, value in case().items()}
    found = with_gradients(in_tiles, given, ("hidden", "weight", "bias"), PLAIN)
    expected = with_gradients(in_double, double(given), ("hidden", "weight", "bias"), PLAIN)
    assert [values.dtype for values in found] == [torch.float32] + [torch.bfloat16] * 3
    assert_same(found[:1], expected[:1])
    assert_same(found[1:], expected[1:], tolerance=1e-2)


@pytest.mark.gpu
@pytest.mark.parametrize("training", [("hidden",), ("hidden", "weight")], ids="+".join)
def test_products_of_bf16_are_nearly_the_same(training, shape):
    given = {name: value.cuda() for name, value in case().items()}
    found = with_gradients(lambda leaves, transform: in_tiles(leaves, transform, bf16=True), given, training, PLAIN)
    assert_same(found, with_gradients(in_double, double(given), training, PLAIN), tolerance=2e-2)


def test_a_gradient_twice_over():
    """Two backward passes through one forward add up: nothing that was saved is changed."""
    for training in (("hidden",), ("hidden", "weight")):
        given = case()
        leaves = given | {name: given[name].clone().requires_grad_() for name in training}
        logps = in_tiles(leaves)
        first, second = (
            torch.autograd.grad(logps.sum(), [leaves[n] for n in training], retain_graph=True) for _ in "ab"
        )
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


# what is made and what is kept


class Watch(TorchDispatchMode):
    """Shapes of all that operations make (views are not made), and the matrix products among these operations."""

    def __init__(self):
        super().__init__()
        self.made: list[int] = []
        self.products = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(output):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().data_ptr() not in given:
                self.made.append(leaf.numel())
        name = function.overloadpacket.__name__
        self.products += any(part in name for part in ("mm", "matmul", "linear", "mv"))
        return output


def watched(training: tuple[str, ...], given: dict[str, Tensor]) -> tuple[Watch, Watch, list[Tensor]]:
    """(forward, backward, tensors saved between them)"""
    leaves, saved = given | {name: given[name].clone().requires_grad_() for name in training}, []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), Watch() as forward:
        logps = in_tiles(leaves)
    with Watch() as backward:
        torch.autograd.grad(logps.sum(), [leaves[name] for name in training])
    return forward, backward, saved


def large() -> dict[str, Tensor]:
    """M x V is far more than M x H, V x H and any tile."""
    generator = torch.Generator().manual_seed(0)
    return {
        "hidden": torch.randn(300, 4, generator=generator),
        "weight": torch.randn(V, 4, generator=generator),
        "targets": torch.randint(V, (300,), generator=generator),
    }


@pytest.mark.parametrize("training", [("hidden",), ("weight",), ("hidden", "weight")], ids="+".join)
def test_nothing_larger_than_a_tile_is_made(training, monkeypatch):
    """Or than the gradients themselves: (300, 4) and (V, 4). All logits would be 300 x 103 values."""
    tile(monkeypatch, 50, 30)
    forward, backward, _ = watched(training, large())
    assert max(forward.made + backward.made) == 50 * 30


def test_the_watch_sees_what_is_larger(monkeypatch):
    tile(monkeypatch, 300, V)
    forward, backward, _ = watched(("hidden", "weight"), large())
    assert max(forward.made) == max(backward.made) == 300 * V


def test_a_frozen_head_needs_no_product_in_the_backward_pass(monkeypatch):
    tile(monkeypatch, 50, 30)
    forward, backward, saved = watched(("hidden",), large())
    blocks = 6 * 4  # of 300 positions and 103 words
    assert (forward.products, backward.products) == (2 * blocks, 0)
    assert [tensor.shape for tensor in saved] == [(300, 4)], "nothing of the vocabulary's size"


def test_a_training_head_makes_its_logits_again(monkeypatch):
    """And keeps none: hidden states, weight, targets and one number a position."""
    tile(monkeypatch, 50, 30)
    given = large()
    forward, backward, saved = watched(("hidden", "weight"), given)
    assert (forward.products, backward.products) == (6 * 4, 3 * 6 * 4)
    assert [tuple(tensor.shape) for tensor in saved] == [(300, 4), (V, 4), (300,), (300,)]


def test_nothing_is_kept_without_gradient():
    with torch.no_grad():
        forward_alone = Watch()
        with forward_alone:
            in_tiles(large())
    assert forward_alone.products == 1, "in one tile, and no gradient is summed"
