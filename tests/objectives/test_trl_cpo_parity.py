"""TRL 1.16's experimental CPOTrainer and ORPOTrainer as the oracles for `cpo`, `simpo`, `alphapo` and `orpo`.

Twice: value and gradient of every weight of a tiny model, each through its own real path (text and ChatML, responses of
unequal length); and TRL's public loss methods on the same log-probs. One trainer a tokenizer: the options are set on
it, and its loss reads them anew each time.
"""

from __future__ import annotations

import copy
import importlib

import pytest
import torch

from align.data.collate import collate
from align.data.examples import parse_row
from align.data.sources import Ledger
from align.data.tokenize import encode_row
from align.objectives import Batch, load
from align.objectives._pairs import of_pairs
from align.scoring.logprobs import response_logps
from tests import tiny
from tests.objectives.loops import bare, uneven_pairs

pytest.importorskip("trl", reason="TRL is the oracle")

PAIRS = [
    ("Where is it?", " Here.", " I know not"),
    ("Two and two make what?", " Four it is", " 5"),
    ("Say hello in German", " Hallo!", " Bonjour"),
]
# TRL's ORPO counts the tokens of the prompt as well, but cannot predict the first: with one byte none are left.
ONE_BYTE = [(letter, chosen, rejected) for letter, (_, chosen, rejected) in zip("ABC", PAIRS, strict=True)]
# TRL scores what a template writes behind the end of a turn, we do not; so here it writes nothing.
CHATML = tiny.CHATML.replace("'<|im_end|>' + '\\n' }}", "'<|im_end|>' }}")

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
PLAIN = {"loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0, "label_smoothing": 0.0, "alpha": 0.0}

each_case = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def policy():
    return tiny.llama(seed=1)


@pytest.fixture(scope="module", params=["text", "chat"])
def encoder(request):
    return tiny.tokenizer(CHATML if request.param == "chat" else None)


def our_batch(policy, encoder, pairs) -> Batch:
    """The pairs as our trainer takes them: encode, collate, score."""
    rows = []
    for prompt, chosen, rejected in pairs:
        example = parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected}, source="", place="")
        rows.append(encode_row(encoder, example, roles={1, -1}, max_length=128, ledger=Ledger()))
    micro = collate(rows, encoder.eos_token_id)
    return Batch(response_logps(policy, micro), micro.mask, micro.role, micro.prompt, micro.pairs)


def trl_trainer(kind: str, policy, encoder, pairs, folder):
    """TRL's own trainer on a copy of `policy`, and its data loader's only batch. Skips if its interface has moved."""
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in pairs]
    if encoder.chat_template:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = [{key: [{"role": roles[key], "content": text}] for key, text in row.items()} for row in rows]
    try:
        module = importlib.import_module(f"trl.experimental.{kind.lower()}")
        args = getattr(module, f"{kind}Config")(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", max_length=128,
            activation_checkpointing=False, per_device_train_batch_size=len(pairs), disable_tqdm=True,
        )  # fmt: skip
        trainer = getattr(module, f"{kind}Trainer")(
            model=copy.deepcopy(policy), args=args, train_dataset=datasets.Dataset.from_list(rows),
            processing_class=encoder,
        )  # fmt: skip
        batches = list(trainer.get_train_dataloader())
    except (ImportError, TypeError, AttributeError) as moved:
        pytest.skip(f"TRL's interface has moved: {moved}")
    assert len(batches) == 1
    return trainer, batches[0]


@pytest.fixture(scope="module")
def cpo_trainer(policy, encoder, tmp_path_factory):
    return trl_trainer("CPO", policy, encoder, PAIRS, tmp_path_factory.mktemp("cpo"))


def set_up(trainer, options: dict) -> None:
    for name, value in (PLAIN | {"simpo_gamma": 0.5} | options).items():
        setattr(trainer, name, value)


def assert_same_gradients(ours: torch.Tensor, policy, theirs: torch.Tensor, their_model) -> None:
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    names, weights = zip(*policy.named_parameters(), strict=True)
    their_names, their_weights = zip(*their_model.named_parameters(), strict=True)
    assert names == their_names
    found = torch.autograd.grad(ours, weights, retain_graph=True)
    for name, one, other in zip(names, found, torch.autograd.grad(theirs, their_weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


@each_case
def test_loss_and_gradient_of_every_weight(case, policy, encoder, cpo_trainer):
    (name, hyper), theirs = CASES[case]
    trainer, their_batch = cpo_trainer
    set_up(trainer, theirs)
    batch = our_batch(policy, encoder, PAIRS)
    assert len(set(batch.mask.sum(-1).tolist())) > 3
    loss = trainer.compute_loss(trainer.model, their_batch)
    assert_same_gradients(load(name)(**hyper)(batch).losses.mean(), policy, loss, trainer.model)


@each_case
def test_public_loss_on_the_same_log_probs(case, cpo_trainer):
    """`cpo_loss` has no likelihood term, so ours goes without; float64."""
    (name, hyper), theirs = CASES[case]
    trainer, _ = cpo_trainer
    set_up(trainer, theirs)
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
    trainer, _ = trl_trainer("ORPO", policy, tiny.tokenizer(None), ONE_BYTE, tmp_path)
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
    trainer, their_batch = trl_trainer("ORPO", policy, encoder, ONE_BYTE, tmp_path)
    trainer.beta = weight
    loss = trainer.compute_loss(trainer.model, their_batch)
    ours = load("orpo")(lambda_=weight, nll="trl")(our_batch(policy, encoder, ONE_BYTE)).losses.mean()
    assert_same_gradients(ours, policy, loss, trainer.model)


def test_orpo_counts_prompt_tokens_in_trl_alone(policy, tmp_path):
    """With longer prompts the two differ, as the docstring of ours says; the paper's own term is another still."""
    encoder = tiny.tokenizer(None)
    trainer, their_batch = trl_trainer("ORPO", policy, encoder, PAIRS, tmp_path)
    theirs = trainer.compute_loss(trainer.model, their_batch).item()
    batch = our_batch(policy, encoder, PAIRS)
    ours = {nll: load("orpo")(lambda_=trainer.beta, nll=nll)(batch).losses.mean().item() for nll in ("trl", "paper")}
    assert len({round(value, 3) for value in (theirs, *ours.values())}) == 3
