"""Adaptive-DPO, minority-aware (Zhang et al., "When Preferences Diverge", 2025), carried over from images to text.

https://arxiv.org/abs/2503.16921. ONLY THE AUTHORS' RELEASED CODE WAS READ, not the paper's equations, and how many
copies the paper uses is not verified (the code: the policy and two, of decay 0.9999 and 0.5). For each pair, with
l = h(y_w) - h(y_l), h the log-ratio to the reference with sequence sums, and l_m the same of M copies of the policy,

    L     = -W * log sigmoid(beta * l - Gamma),    W = 1 / (intercept + temperature * u)
    u     = |mean_m sigmoid(rho * l_m) - 1| * min(std_m(rho * l_m), 1)       little belief in the label, and dispute
    Gamma = -u^2 / beta + beta * mean of l over all pairs of the step        all but the l in L without gradient

std has M - 1 below; each l_m is first divided by its L2 norm over all pairs of the step (`normalize`). All pairs of the
step count, whatever its cut and their example weights, which scale the losses afterwards. Without copies u is
|sigmoid(rho * l) - 1|, and the code does not normalise there (rho 1e4 is its value without). The code's mean in Gamma
is not times beta (`scale_mean: false`): it runs at beta 1000 on tiny l, in text it would be a shift of many nats.
`smallest_norm` is ours: in the first steps the slow mean has hardly left the start; its logits are rounding, and over
their own norm they made losses differ by 1e-4 with the cut of the step. It has no say until they are larger; with fewer
than two models that have, u is 0, as in the code's two steps of warm-up. 0 is the code.
u^2 / beta is large for small beta: an uncertain pair then loses most of its pull, beyond W.

Bound: in tests/test_divergence.py, 30 steps on pairs, good answers lose at most 0.15 nat a token,
KL is at most 0.17.
"""

import dataclasses
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from align.objectives import Batch, Losses, Objective, lift
from align.objectives._pairs import of_pairs, pair_losses
from align.schema import option


@dataclass(frozen=True)
class AdaptiveDPO(Objective):
    """DPO that weighs down pairs whose label the policy and its running means doubt and dispute."""

    beta: float = option(0.1, gt=0, doc="Inverse temperature of the log-ratio, per nat.")
    rho: float = option(15.0, gt=0, doc="Scale of the logits that belief and dispute are read from.")
    intercept: float = option(1.0, gt=0, doc="Inverse weight of a pair that is not uncertain at all.")
    temperature: float = option(10.0, ge=0, doc="What an uncertainty of 1 adds to the inverse weight.")
    slow_decay: float = option(0.9999, ge=0, lt=1, doc="Share of itself the slow running mean keeps at a step.")
    fast_decay: float = option(0.5, ge=0, lt=1, doc="Share of itself the fast running mean keeps at a step.")
    normalize: bool = option(True, doc="Divide each model's logits by their L2 norm over the step, before rho.")
    smallest_norm: float = option(0.05, ge=0, doc="Nats below which this norm is rounding: a model without an opinion.")
    scale_mean: bool = option(True, doc="Take the step's mean logit in the margin times beta; the code does not.")

    needs = ("reference", "pairs", "ema")
    normalize_by = "pair"
    has_stop_gradient = True

    @property
    def ema_decays(self) -> tuple[float, ...]:
        return self.slow_decay, self.fast_decay

    def collect(self, batch: Batch) -> dict[str, Tensor]:
        ratios = batch.log_ratios().detach()[None]  # (1, N)
        if batch.ema_logps is not None:
            copies = batch.over_tokens(lift(batch.ema_logps) - lift(batch.ref_logps))
            ratios = torch.cat([ratios, copies])
        positive, negative = ratios[:, batch.pairs].unbind(-1)
        return {f"logits_{m}": row for m, row in enumerate(positive - negative)}

    def normalized(self, models: Tensor) -> Tensor:
        """The rows of `models` (M, pairs of the step) that tell more than rounding, each over its norm."""
        if not self.normalize:
            return models
        norms = models.norm(dim=-1, keepdim=True)
        return (models / norms.clamp(min=1e-12))[norms[:, 0] >= self.smallest_norm]

    def __call__(self, batch: Batch) -> Losses:
        positive, negative = of_pairs(batch, batch.log_ratios())
        logits, step = positive - negative, self.whole_step(batch)  # (P,)
        models = torch.stack([step.values[f"logits_{m}"] for m in range(len(step.values))])  # (M, pairs of the step)
        first = step.first["logits_0"]
        opinions = self.rho * self.normalized(models)[:, first : first + len(logits)]
        uncertainty = (-opinions).sigmoid().mean(0) if len(opinions) else torch.zeros_like(logits)
        if len(models) > 1:
            uncertainty = uncertainty * (opinions.std(0).clamp(max=1) if len(opinions) > 1 else 0)
        weight = 1 / (self.intercept + self.temperature * uncertainty)
        shift = step.values["logits_0"].mean() * (self.beta if self.scale_mean else 1) - uncertainty**2 / self.beta
        result = pair_losses(-weight * F.logsigmoid(self.beta * logits - shift), self.beta * logits)
        metrics = {"uncertainty": uncertainty, "pair_weight": weight}
        return dataclasses.replace(result, metrics=result.metrics | metrics)
