"""TRL 1.16's DPOTrainer as the oracle for all of its losses.

Twice: value and gradient of every weight of a tiny model, through our real path; and on the same log-probs in
float64, which a stand-in gives the trainer instead of a model. One trainer a tokenizer: the options are set on it, and
its loss reads them anew each time. Log-ratios are not 0, since the reference is not the policy; responses are of
unequal length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch

from align.data.collate import MicroBatch
from align.objectives import Batch, load
from tests.objectives import trl_oracle
from tests.objectives.trl_oracle import PAIRS

trl = pytest.importorskip("trl", reason="TRL is the oracle")

# What the loss of TRL's trainer reads, as one without options has it.
PLAIN = {
    "loss_types": ["sigmoid"],
    "beta": 0.1,
    "label_smoothing": 0.0,
    "f_divergence_type": "reverse_kl",
    "f_alpha_divergence_coef": 0.5,
    "ld_alpha": None,
    "use_weighting": False,
    "args.discopop_tau": 0.05,
}


class Case(NamedTuple):
    """An objective of ours with its options, and what TRL's trainer is set to besides the same beta."""

    ours: str
    hyper: dict
    theirs: dict


def case(ours: str, loss_type: str, hyper: dict, **theirs) -> Case:
    return Case(ours, hyper, theirs | {"loss_types": [loss_type], "beta": hyper["beta"]})


def f_case(divergence: str, coefficient: float = 0.5, **hyper) -> Case:
    """f-DPO. Its coefficient is TRL's, 1 minus the alpha of the paper."""
    hyper = {"beta": 0.3, "f_divergence": divergence, "alpha_divergence_coef": coefficient} | hyper
    loss_type = "sigmoid_norm" if hyper.get("length_normalize") else "sigmoid"
    return case("dpo", loss_type, hyper, f_divergence_type=divergence, f_alpha_divergence_coef=coefficient)


# Where TRL differs from a paper, the option that reproduces TRL is set here; see the objectives' own docstrings.
CASES = {
    "sigmoid": case("dpo", "sigmoid", {"beta": 0.1}),
    "sigmoid, larger beta": case("dpo", "sigmoid", {"beta": 0.25}),
    "sigmoid, forward KL": f_case("forward_kl"),
    "sigmoid, Jensen-Shannon": f_case("js_divergence"),
    "sigmoid, alpha 1/2": f_case("alpha_divergence"),
    "sigmoid, alpha 0.2": f_case("alpha_divergence", 0.2),
    "sigmoid, alpha 1": f_case("alpha_divergence", 1.0),
    "sigmoid_norm": case("dpo", "sigmoid_norm", {"beta": 2.0, "length_normalize": True}),
    # TRL divides f' of the whole log-ratio by the length; no paper has the two together.
    "sigmoid_norm, Jensen-Shannon": f_case("js_divergence", length_normalize=True),
    "hinge": case("hinge", "hinge", {"beta": 0.5}),  # RSO's; SLiC's own has no reference and one term more
    "ipo": case("ipo", "ipo", {"beta": 0.5, "length_normalize": True}),  # the paper's text has sums, TRL means
    "exo_pair": case("exo", "exo_pair", {"beta": 0.4, "label_smoothing": 1e-3}, label_smoothing=1e-3),
    "exo_pair, smoother": case("exo", "exo_pair", {"beta": 0.4, "label_smoothing": 0.2}, label_smoothing=0.2),
    "nca_pair": case("nca", "nca_pair", {"beta": 0.3}),
    "robust": case("robust", "robust", {"beta": 0.3, "label_smoothing": 0.1}, label_smoothing=0.1),
    "bco_pair": case("bco_pair", "bco_pair", {"beta": 0.3}),  # the paper's reward shift is missing in both
    "sppo_hard": case("sppo", "sppo_hard", {"beta": 0.8}),  # the paper has soft labels, the authors' code half the sum
    # TRL sorts within a micro-batch, we within the step: here they are the same.
    "aot": case("aot", "aot", {"beta": 0.3, "label_smoothing": 0.0}),
    "aot, smoothed": case("aot", "aot", {"beta": 0.3, "label_smoothing": 0.2}, label_smoothing=0.2),
    "aot_unpaired": case("aot", "aot_unpaired", {"beta": 0.3, "unpaired": True}),
    "aot_unpaired, smoothed": case(
        "aot", "aot_unpaired", {"beta": 0.3, "unpaired": True, "label_smoothing": 0.2}, label_smoothing=0.2
    ),
    "apo_zero": case("apo_zero", "apo_zero", {"beta": 0.3}),  # the paper's plus 1, in both
    "apo_down": case("apo_down", "apo_down", {"beta": 0.3}),  # the same
    "discopop": case("discopop", "discopop", {"beta": 0.05, "tau": 0.05}),
    "discopop, wider": case("discopop", "discopop", {"beta": 0.3, "tau": 0.4}, **{"args.discopop_tau": 0.4}),
    "sigmoid, LD": case("dpo", "sigmoid", {"beta": 0.3, "ld_alpha": 0.4}, ld_alpha=0.4),
    "sigmoid, LD without any tail": case("dpo", "sigmoid", {"beta": 0.3, "ld_alpha": 0.0}, ld_alpha=0.0),
    "apo_zero, LD": case("apo_zero", "apo_zero", {"beta": 0.3, "ld_alpha": 0.4}, ld_alpha=0.4),
    "ipo, LD": case("ipo", "ipo", {"beta": 0.5, "length_normalize": True, "ld_alpha": 0.4}, ld_alpha=0.4),
    "aot, LD": case("aot", "aot", {"beta": 0.3, "ld_alpha": 0.4}, ld_alpha=0.4),
    # Neither cuts the weight of a pair off at 1, as the code of WPO's authors does.
    "sigmoid, WPO": case("dpo", "sigmoid", {"beta": 0.3, "wpo": True}, use_weighting=True),
    "nca_pair, WPO": case("nca", "nca_pair", {"beta": 0.3, "wpo": True}, use_weighting=True),
    "robust, WPO and LD": case(
        "robust", "robust", {"beta": 0.3, "label_smoothing": 0.1, "wpo": True, "ld_alpha": 0.4},
        label_smoothing=0.1, use_weighting=True, ld_alpha=0.4,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def reference(policy):
    return trl_oracle.moved_copy(policy, seed=2)


def concentration(model, micro: MicroBatch) -> torch.Tensor:
    """(N, T) log sum_v p_v^2 where each response token is predicted, from the model's own logits."""
    with torch.no_grad():
        logits = model(input_ids=micro.tokens.input_ids, attention_mask=micro.tokens.attention_mask).logits
    flat = (2 * logits.flatten(0, 1)[micro.tokens.positions].log_softmax(-1)).logsumexp(-1)  # (M,)
    return torch.zeros(micro.mask.shape).masked_scatter(micro.mask, flat)


@pytest.fixture(scope="module")
def batch(policy, reference, encoder) -> Batch:
    micro = trl_oracle.collated(trl_oracle.encoded(PAIRS, encoder), encoder)
    extras = {"concentration": concentration(policy, micro)}
    return dataclasses.replace(trl_oracle.scored(policy, micro, reference), extras=extras)


@pytest.fixture(scope="module")
def trainer(policy, reference, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    more = {"use_weighting": True}  # so that the model's head tells what WPO needs
    return trl_oracle.trl_trainer("trl", "DPO", policy, PAIRS, encoder, folder, reference, **more)


def their_loss(trainer, model, inputs: dict[str, torch.Tensor], options: dict) -> torch.Tensor:
    """The loss of TRL's trainer, set to `options`."""
    trl_oracle.set_options(trainer, PLAIN | options)
    with trl_oracle.skip_if_moved():
        return trainer.compute_loss(model, inputs)


def our_loss(case: Case, batch: Batch) -> torch.Tensor:
    """The mean over pairs, as our trainer takes it."""
    return load(case.ours)(**case.hyper)(batch).losses.mean()


def test_the_batch_tells_the_losses_apart(batch):
    """Log-ratios of 0 would hide beta and the reference, equal lengths LD-DPO, an order that agrees AOT."""
    assert batch.log_ratios().abs().min() > 0.01
    assert len(set(batch.lengths().tolist())) > 3
    upper, lower = batch.log_ratios()[batch.pairs].unbind(-1)
    assert upper.argsort().tolist() != lower.argsort().tolist()


def summed_in_double(model) -> Callable:
    """The model, with log-probs in float64: TRL subtracts sums of the reference from sums of the policy."""

    def call(**inputs):
        output = model(**inputs)
        output.log_probs = output.log_probs.double()
        return output

    return call


def is_alpha(case: Case) -> bool:
    return case.theirs.get("f_divergence_type") == "alpha_divergence"  # of which TRL has no float64


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_of_every_weight(name, policy, batch, trainer, inputs, monkeypatch):
    """Both sides sum log-probs of tokens that the models gave in float32."""
    case, model = CASES[name], trainer.model
    if not is_alpha(case):
        batch = dataclasses.replace(batch, logps=batch.logps.double(), ref_logps=batch.ref_logps.double())
        monkeypatch.setattr(trainer, "ref_model", summed_in_double(trainer.ref_model))
        model = summed_in_double(model)
    ours, theirs = our_loss(case, batch), their_loss(trainer, model, inputs, case.theirs)
    trl_oracle.assert_same(ours, policy, theirs, trainer.model, rel=3e-6, of_largest=True)


def told(values: torch.Tensor, **more: torch.Tensor) -> Callable:
    """In place of a model: what TRL reads of the log-probs (N, T) it is given."""
    zeros = torch.zeros_like(values.detach())
    output = SimpleNamespace(log_probs=values, entropy=zeros, mean_logits=zeros, is_top1=zeros > 0, **more)
    return lambda **inputs: output


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_on_the_same_tensors(name, trainer, monkeypatch):
    """5 pairs of up to 9 tokens, log-ratios of several nats."""
    alpha = is_alpha(CASES[name])
    batch = some_pairs(torch.float32 if alpha else torch.float64)
    ours = our_loss(CASES[name], batch)
    ends = torch.cat([torch.zeros(len(batch.mask), 1, dtype=torch.long), batch.mask.long()], dim=1)
    inputs = {"input_ids": ends, "attention_mask": torch.ones_like(ends), "completion_mask": ends}
    monkeypatch.setattr(trainer, "ref_model", told(batch.ref_logps))
    model = told(batch.logps * batch.mask, log_sum_sq_probs=batch.extras["concentration"])
    theirs = their_loss(trainer, model, inputs, CASES[name].theirs)
    exactly = 1e-6 if alpha else 1e-7  # TRL's label of EXO is in float32
    assert ours.item() == pytest.approx(theirs.item(), rel=0, abs=exactly)
    found, expected = (torch.autograd.grad(loss, batch.logps)[0] for loss in (ours, theirs))
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(found, expected, rtol=0, atol=exactly)


def some_pairs(dtype: torch.dtype, num_pairs: int = 5, longest: int = 9) -> Batch:
    """Random log-probs of pairs in TRL's order: all positives, then all negatives."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, longest + 1, (2 * num_pairs, 1), generator=generator)
    lengths[0] = longest
    mask = torch.arange(longest) < lengths

    def near(values: torch.Tensor) -> torch.Tensor:
        return (values + 0.5 * torch.randn(mask.shape, dtype=dtype, generator=generator)) * mask

    logps = -4 * torch.rand(mask.shape, dtype=dtype, generator=generator) * mask
    index = torch.arange(num_pairs)
    return Batch(
        logps=logps.requires_grad_(),
        mask=mask,
        role=torch.tensor([1, -1]).repeat_interleave(num_pairs),
        prompt=index.repeat(2),
        pairs=torch.stack([index, index + num_pairs], dim=1),
        ref_logps=near(logps.detach()),
        extras={"concentration": near(logps.detach())},
    )


def test_all_losses_of_trl_are_here():
    """But for `sft`, which is no loss on pairs."""
    documented = trl.DPOConfig.__dataclass_fields__["loss_type"].metadata["help"]
    named = {case.theirs["loss_types"][0] for case in CASES.values()}
    assert all(f"'{name}'" in documented for name in named)
    assert documented.count("`'") == len(named | {"sft"}), documented


def test_label_smoothing_is_the_papers_and_trl_has_none(batch, trainer, inputs):
    """cDPO: (1 - e) log(1 + e^-z) + e log(1 + e^z). TRL takes `label_smoothing` and leaves its loss as it was."""
    beta, smoothing = 0.1, 0.3
    ours = our_loss(Case("dpo", {"beta": beta, "label_smoothing": smoothing}, {}), batch)
    ratios = batch.log_ratios().tolist()
    margins = [beta * (ratios[good] - ratios[bad]) for good, bad in batch.pairs.tolist()]
    plain = [math.log(1 + math.exp(-z)) for z in margins]
    flipped = [math.log(1 + math.exp(z)) for z in margins]
    smoothed = [(1 - smoothing) * loss + smoothing * other for loss, other in zip(plain, flipped, strict=True)]
    assert ours.item() == pytest.approx(sum(smoothed) / len(PAIRS), abs=1e-6)
    theirs = their_loss(trainer, trainer.model, inputs, {"beta": beta, "label_smoothing": smoothing})
    assert theirs.item() == pytest.approx(sum(plain) / len(PAIRS), abs=1e-6)
    assert abs(ours.item() - theirs.item()) > 0.01
