"""The check of a run's first step.

There policy and reference are the same model and must score the same. Where they do not, every later log-ratio is
wrong, and no curve would show it: DPO's loss begins at ln 2, NPO's at 2/beta ln 2, only if all log-ratios are 0.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from align.data.collate import MicroBatch
from align.errors import UserError, shorten
from align.objectives import SAMPLE, Batch, Objective
from align.reference import ADAPTER_OFF, FROZEN, References
from align.scoring.logprobs import response_logps
from align.scoring.support import packed_differs

# Largest mean |log-ratio| of a response, in nats a token, that is rounding: log-probs may have been stored from
# another micro-batch, whose sums ran in another order.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1}


class Drift(NamedTuple):
    """The response of a micro-batch that is furthest from what it must be."""

    nats: float  # mean |log-ratio| of its tokens
    response: int  # which of those the objective sees
    loss: float  # of the micro-batch, mean over its units
    expected: float  # the same with all log-ratios 0


class StartCheck:
    """Compares policy and reference before the first optimiser step, where they must agree.

    They must where the reference is the policy's own start: `adapter_off` (fresh LoRA matrices change nothing) or
    `frozen`; and nothing is dropped at random while training.
    """

    def __init__(self, objective: Objective, references: References, precision: str):
        self.objective, self.references = objective, references
        self.tolerance = TOLERANCE[precision] + references.rounding

    def drift(self, view: Batch) -> Drift | None:
        """The worst response of a micro-batch; None if all log-ratios are 0 within rounding, or need not be."""
        held = torch.tensor([self._is_own(role) for role in view.role.tolist()], device=view.role.device)  # (N,)
        if view.ref_logps is None or not held.any():
            return None
        log_ratios = (view.logps.detach() - view.ref_logps).abs() * view.mask
        means = (log_ratios.sum(-1) / view.mask.sum(-1).clamp(min=1)).masked_fill(~held, 0.0)  # (N,)
        worst = int(means.argmax())
        if not means[worst] > self.tolerance:  # nan is no drift: the loss is then not finite, which stops the run
            return None
        ref_logps = torch.where(held[:, None], view.logps.detach(), view.ref_logps)
        expected = self.objective(dataclasses.replace(view, ref_logps=ref_logps)).losses
        loss = self.objective(view).losses
        return Drift(means[worst].item(), worst, loss.mean().item(), expected.mean().item())

    def _is_own(self, role: int) -> bool:
        who = self.references.samples if role == SAMPLE else self.references.policy
        return who in (ADAPTER_OFF, FROZEN)

    @torch.no_grad()
    def error(self, model: nn.Module, batch: MicroBatch, drift: Drift | None) -> UserError:
        """What is wrong, told by scoring the micro-batch `batch` with this rank's drift (None: another's) again.

        Every rank must call this equally often.
        """
        part = batch.for_objective(self.objective.roles())
        stored, live = (self.references.logps(model, part, live=live) for live in (False, True))
        training, was_training = response_logps(model, part), model.training
        model.eval()
        scoring = response_logps(model, part)
        model.train(was_training)
        if drift is None:
            return UserError("step 1", "policy and reference differ on another rank", "see what that one says")

        def is_far(one: Tensor, other: Tensor) -> bool:
            mask = part.mask[drift.response]
            return ((one - other)[drift.response].abs() * mask).sum() / mask.sum() > self.tolerance / 2

        if is_far(stored, live):
            why, fix = (
                "the stored log-probs are not the reference's",
                "see align ref verify, or set reference.store=off",
            )
        elif is_far(training, scoring):
            why, fix = "the model computes otherwise while it trains", "turn off what is random or different there"
        else:
            why, fix = "their weights differ", "name the reference by its path if it is another model"
        example = part.rows[int(part.prompt[drift.response])].example
        what = (
            f"policy and reference are the same model, but on {shorten(example.prompt, 40)} they are "
            f"{drift.nats:.2g} nats a token apart (loss {drift.loss:.4f}, must be {drift.expected:.4f}): {why}"
        )
        return UserError(f"step 1: {example.place}", what, fix)


class ProbeLayout(TrainerCallback):
    """Before the first step, whether the packed layout equals the padded one; for models that could not run earlier."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_train_begin(self, args, state, control, **kwargs):
        reason = packed_differs(self.trainer.model_wrapped)
        if reason:
            what = f"this model cannot be packed: {shorten(reason, 160)}"
            raise UserError("data.layout", what, "set data.layout=padded")


def must_agree(model: nn.Module) -> bool:
    """Whether a model computes the same while it trains: nothing in it is dropped at random."""
    config = model.config.get_text_config()
    rates = [getattr(config, name, None) or 0.0 for name in ("attention_dropout", "hidden_dropout")]  # functional ones
    return not any(rates) and not any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in model.modules())
