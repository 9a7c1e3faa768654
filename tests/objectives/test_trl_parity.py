"""TRL 1.16's DPOTrainer as the oracle for `dpo`: loss and gradient of every weight, through our real path.

Log-ratios are not 0, since the reference is not the policy; responses are of unequal length.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch

from align.data.collate import collate
from align.data.examples import parse_row
from align.data.sources import Ledger
from align.data.tokenize import encode_row
from align.objectives import Batch, load
from align.reference import FROZEN, References, freeze
from align.scoring.logprobs import response_logps
from tests import tiny

trl = pytest.importorskip("trl", reason="TRL is the oracle")

PAIRS = [
    ("Where is it?", " Here.", " I know not"),
    ("Two and two make what?", " Four it is", " 5"),
    ("Say hello in German", " Hallo!", " Bonjour"),
]  # short: TRL sums log-probs before it subtracts the reference's, and loses digits of long ones in fp32
# TRL scores what a template writes behind the end of a turn, we do not; so here it writes nothing.
CHATML = tiny.CHATML.replace("'<|im_end|>' + '\\n' }}", "'<|im_end|>' }}")


@pytest.fixture(scope="module")
def policy():
    return tiny.llama(seed=1)


@pytest.fixture(scope="module")
def reference(policy):
    """A frozen copy with slightly other weights."""
    copied = freeze(copy.deepcopy(policy))
    generator = torch.Generator().manual_seed(2)
    for weight in copied.parameters():
        weight += 0.04 * torch.randn(weight.shape, generator=generator)
    return copied


@pytest.fixture(params=["text", "chat"])
def encoder(request):
    return tiny.tokenizer(CHATML if request.param == "chat" else None)


def our_loss(policy, reference, encoder, **hyper) -> tuple[torch.Tensor, Batch]:
    """Mean over pairs, as the trainer takes it: encode, collate, score, objective."""
    rows = []
    for prompt, chosen, rejected in PAIRS:
        example = parse_row({"prompt": prompt, "chosen": chosen, "rejected": rejected}, source="", place="")
        rows.append(encode_row(encoder, example, roles={1, -1}, max_length=128, ledger=Ledger()))
    micro = collate(rows, encoder.eos_token_id)
    batch = Batch(
        logps=response_logps(policy, micro),
        mask=micro.mask,
        role=micro.role,
        prompt=micro.prompt,
        pairs=micro.pairs,
        ref_logps=References(FROZEN, None, {FROZEN: reference}).logps(policy, micro),
    )
    return load("dpo")(**hyper)(batch).losses.mean(), batch


def trl_loss(policy, reference, encoder, folder, **options) -> tuple[torch.Tensor, torch.nn.Module]:
    """The loss of TRL's own trainer on its own data loader's only batch, and the copy of `policy` it belongs to.

    Skips if TRL's interface has moved.
    """
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in PAIRS]
    if encoder.chat_template:
        roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
        rows = [{key: [{"role": roles[key], "content": text}] for key, text in row.items()} for row in rows]
    try:
        args = trl.DPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", loss_type="sigmoid", max_length=128,
            activation_checkpointing=False, per_device_train_batch_size=len(PAIRS), disable_tqdm=True, **options,
        )  # fmt: skip
        trainer = trl.DPOTrainer(
            model=copy.deepcopy(policy), ref_model=copy.deepcopy(reference), args=args,
            train_dataset=datasets.Dataset.from_list(rows), processing_class=encoder,
        )  # fmt: skip
        batches = list(trainer.get_train_dataloader())
    except (TypeError, AttributeError) as moved:
        pytest.skip(f"TRL's interface has moved: {moved}")
    assert len(batches) == 1
    return trainer.compute_loss(trainer.model, batches[0]), trainer.model


def gradients(loss: torch.Tensor, model) -> dict[str, torch.Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


@pytest.mark.parametrize("beta", [0.1, 0.25])
def test_loss_and_gradient_of_every_weight(beta, policy, reference, encoder, tmp_path):
    ours, batch = our_loss(policy, reference, encoder, beta=beta)
    assert batch.log_ratios().abs().min() > 0.01, "log-ratios of 0 would hide beta and the reference"
    assert len(set(batch.mask.sum(-1).tolist())) > 3
    theirs, their_model = trl_loss(policy, reference, encoder, tmp_path, beta=beta)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    found, expected = gradients(ours, policy), gradients(theirs, their_model)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


def test_label_smoothing_is_the_papers_and_trl_has_none(policy, reference, encoder, tmp_path):
    """cDPO: (1 - e) log(1 + e^-z) + e log(1 + e^z). TRL takes `label_smoothing` and leaves its loss as it was."""
    beta, smoothing = 0.1, 0.3
    ours, batch = our_loss(policy, reference, encoder, beta=beta, label_smoothing=smoothing)
    ratios = batch.log_ratios().tolist()
    margins = [beta * (ratios[good] - ratios[bad]) for good, bad in batch.pairs.tolist()]
    plain = [math.log(1 + math.exp(-z)) for z in margins]
    flipped = [math.log(1 + math.exp(z)) for z in margins]
    smoothed = [(1 - smoothing) * loss + smoothing * other for loss, other in zip(plain, flipped, strict=True)]
    assert ours.item() == pytest.approx(sum(smoothed) / len(PAIRS), abs=1e-6)
    theirs, _ = trl_loss(policy, reference, encoder, tmp_path, beta=beta, label_smoothing=smoothing)
    assert theirs.item() == pytest.approx(sum(plain) / len(PAIRS), abs=1e-6)
    assert abs(ours.item() - theirs.item()) > 0.01
