"""Log-probs of response tokens: one forward of the backbone, and the LM head on response positions only.

Shapes: N responses, S tokens, T response tokens of the longest response, M response tokens in all, H hidden size.
"""

from __future__ import annotations

import inspect

import torch
from torch import Tensor, nn

from align.data.collate import MicroBatch, collate
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.scoring.extras import Extra
from align.scoring.head import causal_lm, log_probs_of, read_logits


def hidden_states(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(M, H) last hidden state at the positions that predict response tokens.

    `model` is called as it is wrapped (DDP and DeepSpeed need their own forward); the backbone's output is
    read by a hook, and the model's own head is kept to a single position.
    """
    inner = causal_lm(model)
    captured: list[Tensor] = []
    handle = inner.base_model.register_forward_hook(lambda module, args, output: captured.append(output[0]))
    extra = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
    try:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False, **extra)
    finally:
        handle.remove()
    return captured[0].flatten(0, 1)[batch.positions]


def response_logps(model: nn.Module, batch: MicroBatch) -> Tensor:
    """(N, T) float32 log-prob of each response token in nats; 0 where `batch.mask` is 0."""
    return response_scores(model, batch, {})[0]


def response_scores(model: nn.Module, batch: MicroBatch, extras: dict[str, Extra]) -> tuple[Tensor, dict[str, Tensor]]:
    """(N, T) log-probs as `response_logps`, and (N, T) of each of `extras`, from one pass through the head."""
    hidden = hidden_states(model, batch)  # (M, H)

    def read(logits: Tensor, at: slice) -> Tensor:
        values = [log_probs_of(logits, batch.targets[at]), *(extra(logits, at) for extra in extras.values())]
        return torch.stack(values, dim=-1)

    flat = read_logits(causal_lm(model), hidden, read)  # (M, 1 + extras)
    empty = torch.zeros(batch.mask.shape, dtype=torch.float32, device=hidden.device)
    logps, *others = (empty.masked_scatter(batch.mask, column) for column in flat.unbind(-1))
    return logps, dict(zip(extras, others, strict=True))


@torch.no_grad()
def check_head(model: nn.Module) -> float:
    """Largest difference between our log-probs and those of the model's own logits, on a short probe.

    Models whose head does something unknown to `logit_transform` show up here, before they can train wrongly.
    """
    inner = causal_lm(model)
    device = inner.get_output_embeddings().weight.device
    ids = torch.arange(1, 9, device=device)[None] % inner.config.get_text_config().vocab_size
    row = TokenizedRow((ids[0, 0].item(),), (TokenizedResponse(tuple(ids[0, 1:].tolist()), 1),), None)
    batch = collate([row], pad_id=0).to(device)
    was_training = model.training
    model.eval()
    own = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
    own = own.gather(-1, ids[0, 1:, None]).squeeze(-1)
    difference = (response_logps(model, batch)[0] - own).abs().max().item()
    model.train(was_training)
    return difference
