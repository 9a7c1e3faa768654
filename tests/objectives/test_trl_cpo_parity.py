"""TRL 1.16's experimental CPOTrainer and ORPOTrainer as the oracles for `cpo`, `simpo`, `alphapo` and `orpo`.

Twice: value and gradient of every weight of a tiny model, each through its own real path (text and ChatML, responses of
unequal length); and TRL's public loss methods on the same log-probs. One trainer a tokenizer: the options are set on
it, and its loss reads them anew each time.
"""

from __future__ import annotations

import pytest
import torch

from align.objectives import Batch, load
from align.objectives._pairs import of_pairs
from tests import tiny
from tests.objectives import trl_oracle
from tests.objectives.loops import bare, uneven_pairs
from tests.objectives.trl_oracle import PAIRS, assert_same

pytest.importorskip("trl", reason="TRL is the oracle")

# TRL's ORPO counts the tokens of the prompt as well, but cannot predict the first: with one byte none are left.
ONE_BYTE = [pair | {"prompt": letter} for letter, pair in zip("ABC", PAIRS, strict=True)]

# Ours with its options, and what TRL's CPOTrainer is set to.
CASES = {
    "cpo": (("cpo", {"beta": 0.2, "nll": "trl"}), {"beta": 0.2}),
    "cpo, less imitation": (("cpo", {"beta": 0.5, "alpha": 0.3, "nll": "trl"}), {"beta": 0.5, "cpo_alpha": 0.3}),
    "cpo, no imitation": (("cpo", {"beta": 0.2, "alpha": 0.0}), {"beta": 0.2, "cpo_alpha": 0.0}),
    "cpo, smoothed": (
        ("cpo", {"beta": 0.2, "alpha": 0.0, "label_smoothing": 0.2}),
        {"beta": 0.2, "cpo_alpha": 0.0, "label_smoothing": 0.2},
    ),
    "simpo": (
        ("simpo", {"beta": 2.0, "gamma": 1.0}),
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    ),
    "simpo, smoothed": (
        ("simpo", {"beta": 5.0, "gamma": 0.5, "label_smoothing": 0.1}),
        {"loss_type": "simpo", "beta": 5.0, "simpo_gamma": 0.5, "cpo_alpha": 0.0, "label_smoothing": 0.1},
    ),
    "alphapo": (
        ("alphapo", {"beta": 2.0, "gamma": 1.0, "alpha": 0.25}),
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0, "alpha": 0.25},
    ),
    "alphapo, negative alpha": (
        ("alphapo", {"beta": 2.0, "gamma": 0.3, "alpha": -0.5}),
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 0.3, "cpo_alpha": 0.0, "alpha": -0.5},
    ),
}
PLAIN = {
    "loss_type": "sigmoid",
    "beta": 0.1,
    "cpo_alpha": 1.0,
    "label_smoothing": 0.0,
    "alpha": 0.0,
    "simpo_gamma": 0.5,
}

each_case = pytest.mark.parametrize("case", CASES)


def our_batch(policy, encoder, pairs) -> Batch:
    return trl_oracle.scored(policy, trl_oracle.collated(trl_oracle.encoded(pairs, encoder), encoder))


@pytest.fixture(scope="module")
def trainer(policy, encoder, tmp_path_factory):
    more = {"loss_type": "simpo"}  # so that it has a simpo_gamma to set
    folder = tmp_path_factory.mktemp("cpo")
    return trl_oracle.trl_trainer("trl.experimental.cpo", "CPO", policy, PAIRS, encoder, folder, **more)


def orpo_trainer(policy, encoder, pairs, folder):
    return trl_oracle.trl_trainer("trl.experimental.orpo", "ORPO", policy, pairs, encoder, folder)


@each_case
def test_loss_and_gradient_of_every_weight(case, policy, encoder, trainer, inputs):
    (name, hyper), theirs = CASES[case]
    trl_oracle.set_options(trainer, PLAIN | theirs)
    batch = our_batch(policy, encoder, PAIRS)
    assert len(set(batch.mask.sum(-1).tolist())) > 3
    loss = trainer.compute_loss(trainer.model, inputs)
    assert_same(load(name)(**hyper)(batch).losses.mean(), policy, loss, trainer.model)


@each_case
def test_public_loss_on_the_same_log_probs(case, trainer):
    """`cpo_loss` has no likelihood term, so ours goes without; float64."""
    (name, hyper), theirs = CASES[case]
    trl_oracle.set_options(trainer, PLAIN | theirs)
    hyper = hyper | ({"alpha": 0.0} if name == "cpo" else {})
    batch = bare(uneven_pairs(), shift=-3.0)
    logps = batch.logps.detach().double().requires_grad_()
    batch = Batch(logps, batch.mask, batch.role, batch.prompt, batch.pairs)
    scores = batch.sums() if theirs.get("loss_type", "sigmoid") == "sigmoid" else batch.means()
    expected, *_ = trainer.cpo_loss(*of_pairs(batch, scores))
    ours = load(name)(**hyper)(batch).losses
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), logps, retain_graph=True) for x in (ours, expected)))


def test_alphapo_is_what_trl_calls_so(tmp_path):
    """Its loss_type alphapo is simpo without imitation, with alpha for the shape: what CASES sets."""
    cpo = pytest.importorskip("trl.experimental.cpo")
    config = cpo.CPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, loss_type="alphapo")
    assert (config.loss_type, config.cpo_alpha) == ("simpo", 0.0)


@pytest.mark.parametrize("weight", [0.1, 0.7])
def test_orpo_on_the_same_log_probs(weight, policy, tmp_path):
    """TRL counts in float32, and calls lambda beta. Ours less its likelihood term, which is lambda = 0."""
    trainer = orpo_trainer(policy, tiny.tokenizer(None), ONE_BYTE, tmp_path)
    trainer.beta = weight
    batch = bare(uneven_pairs(), shift=-3.0)
    ours = load("orpo")(lambda_=weight)(batch).losses - load("orpo")(lambda_=0.0)(batch).losses
    expected = -trainer.odds_ratio_loss(*of_pairs(batch, batch.means()))[0]
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)
    found = [torch.autograd.grad(values.sum(), batch.logps, retain_graph=True)[0] for values in (ours, expected)]
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight", [0.1, 0.7])
def test_orpo_loss_and_gradient_of_every_weight(weight, policy, tmp_path):
    """The whole loss, under prompts of one token, which leave TRL's likelihood term the response alone."""
    encoder = tiny.tokenizer(None)
    trainer = orpo_trainer(policy, encoder, ONE_BYTE, tmp_path)
    trainer.beta = weight
    loss = trainer.compute_loss(trainer.model, trl_oracle.only_batch(trainer))
    ours = load("orpo")(lambda_=weight, nll="trl")(our_batch(policy, encoder, ONE_BYTE)).losses.mean()
    assert_same(ours, policy, loss, trainer.model)


def test_orpo_counts_prompt_tokens_in_trl_alone(policy, tmp_path):
    """With longer prompts the two differ, as the docstring of ours says; the paper's own term is another still."""
    encoder = tiny.tokenizer(None)
    trainer = orpo_trainer(policy, encoder, PAIRS, tmp_path)
    theirs = trainer.compute_loss(trainer.model, trl_oracle.only_batch(trainer)).item()
    batch = our_batch(policy, encoder, PAIRS)
    ours = {nll: load("orpo")(lambda_=trainer.beta, nll=nll)(batch).losses.mean().item() for nll in ("trl", "paper")}
    assert len({round(value, 3) for value in (theirs, *ours.values())}) == 3
