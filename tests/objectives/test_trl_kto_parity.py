"""TRL 1.16's KTOTrainer as the oracle for `kto`: value and gradient of every weight of a tiny model.

Each through its own real path, the mismatched responses of the KL included: TRL puts the previous row's completion
behind a prompt, we the row's response behind the next prompt, so with one response a row the two sets are the same.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch

from align.data.steps import mismatch
from align.objectives import Batch, WholeStep, load
from tests.objectives import trl_oracle

pytest.importorskip("trl", reason="TRL is the oracle")

ROWS = [
    {"prompt": "Where is it?", "completion": " Here.", "label": True},
    {"prompt": "Two and two make what?", "completion": " 5", "label": False},
    {"prompt": "Say hello in German", "completion": " Bonjour", "label": False},
    {"prompt": "A colour", "completion": " Red it is", "label": True},
    {"prompt": "One more", "completion": " No", "label": False},
]  # short, as trl_oracle.PAIRS
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


@pytest.fixture(scope="module", params=SEEDS)
def reference(policy, request):
    return trl_oracle.moved_copy(policy, SEEDS[request.param])


@pytest.fixture(scope="module")
def batch(policy, reference, encoder) -> Batch:
    """The rows and their mismatched responses as the trainer takes them."""
    rows = trl_oracle.encoded(ROWS, encoder)
    others = trl_oracle.collated(mismatch(rows, trl_oracle.MAX_LENGTH), encoder)
    with torch.no_grad():
        mismatched = trl_oracle.scored(policy, others, reference).log_ratios()
    step = WholeStep({"mismatched": mismatched})
    return dataclasses.replace(trl_oracle.scored(policy, trl_oracle.collated(rows, encoder), reference), step=step)


@pytest.fixture(scope="module")
def trainer(policy, reference, encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    more = {"loss_type": "kto", "train_sampling_strategy": "sequential"}
    return trl_oracle.trl_trainer("trl", "KTO", policy, ROWS, encoder, folder, reference, **more)


def their_loss(trainer, inputs: dict[str, torch.Tensor], case: Case) -> torch.Tensor:
    """The loss of TRL's trainer, set to the case."""
    options = {
        "loss_type": case.loss_type,
        "beta": case.beta,
        "desirable_weight": case.positive_weight,
        "undesirable_weight": case.negative_weight,
        "calculate_KL": case.loss_type == "kto",
    }
    trl_oracle.set_options(trainer, options)
    with trl_oracle.skip_if_moved(KeyError):
        return trainer.compute_loss(trainer.model, inputs)


def our_losses(case: Case, batch: Batch) -> torch.Tensor:
    """`apo_zero_unpaired` is the objective where nobody has supplied mismatched responses."""
    step = batch.step if case.loss_type == "kto" else None
    return load("kto")(*case[1:])(dataclasses.replace(batch, step=step)).losses


@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_of_every_weight(case, policy, batch, trainer, inputs):
    ours, theirs = our_losses(case, batch).mean(), their_loss(trainer, inputs, case)
    trl_oracle.assert_same(ours, policy, theirs, trainer.model, rtol=0)


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
