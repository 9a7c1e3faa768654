"""TRL 1.16's KTOTrainer as the oracle for `kto`: value and gradient of every weight of a tiny model.

Each through its own real path, the mismatched responses of the KL included: TRL puts the previous row's completion
behind a prompt, we the row's response behind the next prompt, so with one response a row the two sets are the same.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import NamedTuple

import pytest
import torch

from align.data.collate import MicroBatch, collate
from align.data.examples import parse_row
from align.data.sources import Ledger
from align.data.steps import mismatch
from align.data.tokenize import encode_row
from align.objectives import Batch, WholeStep, load
from align.reference import FROZEN, References, freeze
from align.scoring.logprobs import response_logps
from tests import tiny

trl = pytest.importorskip("trl", reason="TRL is the oracle")

ROWS = [
    ("Where is it?", " Here.", True),
    ("Two and two make what?", " 5", False),
    ("Say hello in German", " Bonjour", False),
    ("A colour", " Red it is", True),
    ("One more", " No", False),
]  # short: TRL sums log-probs before it subtracts the reference's, and loses digits of long ones in fp32
# TRL scores what a template writes behind the end of a turn, we do not; so here it writes nothing.
CHATML = tiny.CHATML.replace("'<|im_end|>' + '\\n' }}", "'<|im_end|>' }}")
SEEDS = {"above 0": 5, "below 0": 8}  # of the reference's weights: the estimate of the KL before it is cut off at 0


class Case(NamedTuple):
    loss_type: str
    beta: float
    positive_weight: float = 1.0
    negative_weight: float = 1.0


CASES = [
    Case("kto", 0.1),
    Case("kto", 0.5, 1.33, 1.0),
    Case("kto", 0.3, 0.7, 0.2),
    Case("apo_zero_unpaired", 0.1),
    Case("apo_zero_unpaired", 0.4, 1.5, 0.5),
]


@pytest.fixture(scope="module")
def policy():
    return tiny.llama(seed=1)


@pytest.fixture(scope="module", params=SEEDS)
def reference(policy, request):
    """A frozen copy with slightly other weights."""
    copied = freeze(copy.deepcopy(policy))
    generator = torch.Generator().manual_seed(SEEDS[request.param])
    for weight in copied.parameters():
        weight += 0.04 * torch.randn(weight.shape, generator=generator)
    return copied


@pytest.fixture(scope="module", params=["text", "chat"])
def encoder(request):
    return tiny.tokenizer(CHATML if request.param == "chat" else None)


@pytest.fixture(scope="module")
def batch(policy, reference, encoder) -> Batch:
    """The rows and their mismatched responses as the trainer takes them: encode, collate, score."""
    rows = []
    for prompt, completion, label in ROWS:
        example = parse_row({"prompt": prompt, "completion": completion, "label": label}, source="", place="")
        rows.append(encode_row(encoder, example, roles={1, -1}, max_length=128, ledger=Ledger()))
    references = References(FROZEN, None, {FROZEN: reference})

    def scored(micro: MicroBatch, logps: torch.Tensor) -> Batch:
        reference_logps = references.logps(policy, micro)
        return Batch(logps, micro.mask, micro.role, micro.prompt, micro.pairs, ref_logps=reference_logps)

    micro, others = collate(rows, encoder.eos_token_id), collate(mismatch(rows, 128), encoder.eos_token_id)
    with torch.no_grad():
        mismatched = scored(others, response_logps(policy, others)).log_ratios()
    step = WholeStep({"mismatched": mismatched})
    return dataclasses.replace(scored(micro, response_logps(policy, micro)), step=step)


@pytest.fixture(scope="module")
def trainer(policy, reference, encoder, tmp_path_factory):
    """TRL's own; skips if its interface has moved."""
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": p, "completion": c, "label": label} for p, c, label in ROWS]
    if encoder.chat_template:
        roles = {"prompt": "user", "completion": "assistant"}
        rows = [row | {key: [{"role": role, "content": row[key]}] for key, role in roles.items()} for row in rows]
    try:
        args = trl.KTOConfig(
            output_dir=str(tmp_path_factory.mktemp("trl")), use_cpu=True, bf16=False, report_to="none",
            max_length=128, activation_checkpointing=False, per_device_train_batch_size=len(ROWS),
            disable_tqdm=True, loss_type="kto", train_sampling_strategy="sequential",
        )  # fmt: skip
        return trl.KTOTrainer(
            model=copy.deepcopy(policy), ref_model=copy.deepcopy(reference), args=args,
            train_dataset=datasets.Dataset.from_list(rows), processing_class=encoder,
        )  # fmt: skip
    except (TypeError, AttributeError) as moved:
        pytest.skip(f"TRL's interface has moved: {moved}")


@pytest.fixture(scope="module")
def inputs(trainer) -> dict[str, torch.Tensor]:
    """The only batch of TRL's own data loader."""
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 1
    return batches[0]


def their_loss(trainer, inputs: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
    """The loss of TRL's trainer, set to the case; skips if its interface has moved."""
    options = {
        "loss_type": case.loss_type,
        "beta": case.beta,
        "desirable_weight": case.positive_weight,
        "undesirable_weight": case.negative_weight,
        "calculate_KL": case.loss_type == "kto",
    }
    for name, value in options.items():
        if not hasattr(trainer, name):
            pytest.skip(f"TRL's interface has moved: its trainer has no {name}")
        setattr(trainer, name, value)
    try:
        return trainer.compute_loss(trainer.model, inputs)
    except (TypeError, AttributeError, KeyError) as moved:
        pytest.skip(f"TRL's interface has moved: {moved}")


def our_losses(case: Case, batch: Batch) -> torch.Tensor:
    """`apo_zero_unpaired` is the objective where nobody has supplied mismatched responses."""
    step = batch.step if case.loss_type == "kto" else None
    return load("kto")(*case[1:])(dataclasses.replace(batch, step=step)).losses


def gradients(loss: torch.Tensor, model) -> dict[str, torch.Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, retain_graph=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_of_every_weight(case, policy, batch, trainer, inputs):
    ours, theirs = our_losses(case, batch).mean(), their_loss(trainer, inputs, case)
    assert ours.item() == pytest.approx(theirs.item(), rel=0, abs=1e-6)
    found, expected = gradients(ours, policy), gradients(theirs, trainer.model)
    assert found.keys() == expected.keys()
    assert max(values.abs().max().item() for values in expected.values()) > 1e-3
    for weight, values in expected.items():
        torch.testing.assert_close(
            found[weight], values, rtol=0, atol=1e-6, msg=lambda text, at=weight: f"{at}: {text}"
        )


def test_the_kl_is_theirs(batch, trainer, inputs, request):
    """The mean of the mismatched log-ratios, not below 0, by what TRL logs; and both sides of 0 have been seen."""
    trainer._metrics["train"].clear()
    trainer._metrics["eval"].clear()
    their_loss(trainer, inputs, Case("kto", 0.1))
    logged = [kl for mode in trainer._metrics.values() for kl in mode.get("kl", [])]
    mean = batch.step.values["mismatched"].mean().item()
    assert len(batch.step.values["mismatched"]) == len(ROWS)
    assert logged == [pytest.approx(max(mean, 0), abs=1e-5)]  # TRL sums log-probs of 40 nats first, in fp32
    assert abs(mean) > 0.1
    assert (mean > 0) == (request.node.callspec.params["reference"] == "above 0")
    assert (batch.log_ratios().abs() > 0.01).all() and len(set(batch.lengths().tolist())) > 3
