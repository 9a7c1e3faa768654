"""What the tests that ask TRL share: the same rows through our real path and through TRL's own trainers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import nn

from align.data.collate import MicroBatch, collate
from align.data.examples import parse_row
from align.data.ledger import Ledger
from align.data.tokenize import TokenizedRow, encode_row
from align.objectives import Batch
from align.reference import FROZEN, References, freeze
from align.scoring.logprobs import response_logps
from tests import tiny

MAX_LENGTH = 128

PAIRS = [
    {"prompt": "Where is it?", "chosen": " Here.", "rejected": " I know not"},
    {"prompt": "Two and two make what?", "chosen": " Four it is", "rejected": " 5"},
    {"prompt": "Say hello in German", "chosen": " Hallo!", "rejected": " Bonjour"},
]  # short: TRL sums log-probs before it subtracts the reference's, and loses digits of long ones in fp32

# TRL scores what a template writes behind the end of a turn, we do not; so here it writes nothing.
CHATML = tiny.CHATML.replace("'<|im_end|>' + '\\n' }}", "'<|im_end|>' }}")


def moved_copy(policy: nn.Module, seed: int) -> nn.Module:
    """A reference: a frozen copy with slightly other weights."""
    copied = freeze(copy.deepcopy(policy))
    generator = torch.Generator().manual_seed(seed)
    for weight in copied.parameters():
        weight += 0.04 * torch.randn(weight.shape, generator=generator)
    return copied


def encoded(rows: Sequence[dict], encoder) -> list[TokenizedRow]:
    """The rows as our trainer reads them."""
    examples = [parse_row(row, source="", place="") for row in rows]
    return [encode_row(encoder, one, roles={1, -1}, max_length=MAX_LENGTH, ledger=Ledger()) for one in examples]


def collated(rows: Sequence[TokenizedRow], encoder) -> MicroBatch:
    return collate(rows, encoder.eos_token_id)


def scored(policy: nn.Module, micro: MicroBatch, reference: nn.Module | None = None) -> Batch:
    """The micro-batch as our trainer hands it to an objective."""
    ref_logps = None if reference is None else References(FROZEN, None, {FROZEN: reference}).logps(policy, micro)
    return Batch(
        logps=response_logps(policy, micro),
        mask=micro.mask,
        role=micro.role,
        prompt=micro.prompt,
        pairs=micro.pairs,
        ref_logps=ref_logps,
    )


@contextlib.contextmanager
def skip_if_moved(*more: type[Exception]) -> Iterator[None]:
    """Skips the test where TRL's interface is not the one we know: at a wrong argument, a missing name, `more`."""
    try:
        yield
    except (TypeError, AttributeError, *more) as moved:
        pytest.skip(f"TRL's interface has moved: {moved}")


def turns(row: dict) -> dict:
    """The row with each text as a conversation of one turn."""
    texts = {key: value for key, value in row.items() if isinstance(value, str)}
    roles = {key: "user" if key == "prompt" else "assistant" for key in texts}
    return row | {key: [{"role": roles[key], "content": text}] for key, text in texts.items()}


def trl_trainer(
    where: str, kind: str, policy: nn.Module, rows: Sequence[dict], encoder, folder, reference=None, **options
):
    """TRL's own trainer of that kind from the module `where`, on copies of the models, with all rows in one batch."""
    datasets, module = pytest.importorskip("datasets"), pytest.importorskip(where, reason="TRL is the oracle")
    rows = [turns(row) for row in rows] if encoder.chat_template else rows
    models = {"model": policy} | ({} if reference is None else {"ref_model": reference})
    with skip_if_moved():
        args = getattr(module, f"{kind}Config")(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to="none", max_length=MAX_LENGTH,
            activation_checkpointing=False, per_device_train_batch_size=len(rows), disable_tqdm=True, **options,
        )  # fmt: skip
        return getattr(module, f"{kind}Trainer")(
            **copy.deepcopy(models), args=args, train_dataset=datasets.Dataset.from_list(list(rows)),
            processing_class=encoder,
        )  # fmt: skip


def only_batch(trainer) -> dict[str, torch.Tensor]:
    """The only batch of the trainer's own data loader."""
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == 1
    return batches[0]


def set_options(trainer, options: dict) -> None:
    """Sets what the trainer's loss reads anew each time, `args.` and a name on its arguments."""
    for name, value in options.items():
        *where, attribute = name.split(".")
        holder = trainer.args if where else trainer
        if not hasattr(holder, attribute):
            pytest.skip(f"TRL's interface has moved: its trainer has no {name}")
        setattr(holder, attribute, value)


def gradients(loss: torch.Tensor, model: nn.Module) -> dict[str, torch.Tensor]:
    names, weights = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, retain_graph=True), strict=True))


def assert_same(
    ours: torch.Tensor,
    policy: nn.Module,
    theirs: torch.Tensor,
    model: nn.Module,
    *,
    rel: float = 0.0,
    rtol: float = 1e-5,
    of_largest: bool = False,
) -> None:
    """Our loss of the policy and theirs of its copy agree in value to 1e-6, and in the gradient of every weight.

    There to 1e-6 as well, under `of_largest` times the largest slope, if that is above 1.
    """
    assert ours.item() == pytest.approx(theirs.item(), rel=rel, abs=1e-6)
    found, expected = gradients(ours, policy), gradients(theirs, model)
    assert found.keys() == expected.keys()
    largest = max(values.abs().max().item() for values in expected.values())
    assert largest > 1e-3
    atol = 1e-6 * max(1, largest) if of_largest else 1e-6
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, rtol=rtol, atol=atol, msg=lambda text, at=name: f"{at}: {text}")
