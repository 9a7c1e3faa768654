"""Whether a model can be scored the way we do it: its LM head, and its attention in the packed layout."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from align.data.collate import collate
from align.data.layout import PACKED, PADDED
from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.scoring.attention import NAME
from align.scoring.head import causal_lm
from align.scoring.logprobs import response_logps

HEAD_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}  # nats a token, by the type of the frozen weights
LAYOUT_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


def check_head(model: nn.Module) -> float:
    """Largest difference between our log-probs and those of the model's own logits, on a short probe.

    Models whose head does something unknown to `logit_transform` show up here, before they can train wrongly.
    """
    inner = causal_lm(model)
    row = _row(inner, prompt=1, responses=(7,))
    ids = torch.tensor([[*row.prompt_ids, *row.responses[0].ids]], device=_device(inner))
    with _evaluating(model):
        own = model(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        own = own.gather(-1, ids[0, 1:, None]).squeeze(-1)
        return (_probe(model, [row], PADDED)[0] - own).abs().max().item()


def use_packed(model: nn.Module, max_length: int, *, has_weights: bool = True) -> str | None:
    """Makes a model ready for the packed layout of prompts with responses, up to `max_length` tokens together.

    Returns why it cannot be, in words for the user, and leaves the model as it was; None: it is ready. Under ZeRO-3,
    where weights are sharded and cannot run yet, the probe (`packed_differs`) is left to the first step; a model that
    `has_weights` false is judged by its configuration alone.
    """
    inner = causal_lm(model)
    before, reason = inner.config._attn_implementation, _unsuited(inner, max_length)
    if reason is None:
        reason = _set_attention(inner, NAME)
    if reason is None and has_weights and not is_deepspeed_zero3_enabled():
        reason = packed_differs(model)
        if reason:
            _set_attention(inner, before)
    return reason


def packed_differs(model: nn.Module) -> str | None:
    """What is wrong with the packed layout of a model that runs, told by a probe; None: it equals the padded one."""
    inner = causal_lm(model)
    rows = [_row(inner, prompt=5, responses=(4, 1, 6)), _row(inner, prompt=3, responses=(5, 2))]
    with _evaluating(model):
        try:
            packed = _probe(model, rows, PACKED)
            if packed.is_cuda:  # FlexAttention knows no dropout, and says so only in training
                model.train()
                _probe(model, rows, PACKED)
                model.eval()
        except Exception as error:  # whatever a model's own code makes of a mask it was not written for
            return f"{type(error).__name__}: {str(error).strip()}"
        difference = (packed - _probe(model, rows, PADDED)).abs().max().item()
    if difference > LAYOUT_TOLERANCE[inner.dtype if inner.dtype in LAYOUT_TOLERANCE else torch.bfloat16]:
        return f"its log-probs differ by {difference:.2g} there"
    return None


def _unsuited(inner: nn.Module, max_length: int) -> str | None:
    """What the configuration tells against trees."""
    config = inner.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or ())
    local = kinds & {"sliding_attention", "chunked_attention"}
    if not kinds and window is not None and getattr(config, "use_sliding_window", True):
        local = {"sliding_attention"}
    if local and ("chunked_attention" in local or window is None or window < max_length):
        return f"its attention slides over {window or 'few'} tokens, data.max_length is {max_length}"
    others = sorted(kinds - local - {"full_attention"})
    return f"it has layers of {', '.join(others)}" if others else None


def _set_attention(inner: nn.Module, name: str) -> str | None:
    """Sets a model's attention function; returns why that is impossible, if it is."""
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)  # what it has to say, we say
    try:
        inner.set_attn_implementation(name)
    finally:
        logger.setLevel(level)
    if inner.config._attn_implementation != name:
        return f"the attention of {type(inner).__name__} cannot be replaced"
    return None


def _row(inner: nn.Module, *, prompt: int, responses: tuple[int, ...]) -> TokenizedRow:
    """Some tokens, different ones for each response."""
    words, numbers = inner.config.get_text_config().vocab_size, iter(range(1, 1000))

    def ids(count: int) -> tuple[int, ...]:
        return tuple(next(numbers) % words for _ in range(count))

    return TokenizedRow(ids(prompt), tuple(TokenizedResponse(ids(length), 1) for length in responses), None)


def _device(inner: nn.Module) -> torch.device:
    return inner.get_output_embeddings().weight.device


def _probe(model: nn.Module, rows: list[TokenizedRow], layout: str) -> Tensor:
    return response_logps(model, collate(rows, 0, layout).to(_device(causal_lm(model))))


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, in the model's own arithmetic: a reference may be loaded and probed within a step."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), torch.autocast(_device(causal_lm(model)).type, enabled=False):
            yield
    finally:
        model.train(was_training)
