"""Useful floating-point operations of a training step, and the measured peak they are held against.

Useful: every prompt token once, and every response token that something is predicted from; padding, repeated
prompts and recomputation do not count. A multiplication with an addition is two operations.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass

from align.data.tokenize import TokenizedRow

SIDE = 2048  # of the square matrices whose product gives the peak


@dataclass(frozen=True)
class ModelSize:
    """What of a model decides how much it computes for a token."""

    backbone: int  # weights that every token is multiplied with, without embedding and head
    adapter: int  # weights of LoRA matrices; 0: all weights train
    head: int  # weights of the LM head
    attention: int  # layers times width of the queries

    @classmethod
    def of(cls, model) -> ModelSize:
        """The size of a (PEFT) causal language model."""
        config = model.config.get_text_config()
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        adapter = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
        tables = {id(weight): weight.numel() for weight in (head, embedding)}
        total = sum(weight.numel() for weight in model.parameters())
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        attention = config.num_hidden_layers * config.num_attention_heads * width
        return cls(total - adapter - sum(tables.values()), adapter, head.numel(), attention)


def unique_tokens(row: TokenizedRow) -> int:
    """Tokens that must go through the model: the prompt once, each response without its last."""
    return len(row.prompt_ids) + sum(len(response.ids) - 1 for response in row.responses)


def response_tokens(rows: Iterable[TokenizedRow]) -> int:
    return sum(len(response.ids) for row in rows for response in row.responses)


def attention_pairs(row: TokenizedRow) -> int:
    """(query, key) pairs of the tree: the prompt sees itself, a response the prompt and itself, all causally."""
    prompt = len(row.prompt_ids)
    lengths = [len(response.ids) - 1 for response in row.responses]
    return prompt * (prompt + 1) // 2 + sum(n * prompt + n * (n + 1) // 2 for n in lengths)


def training_flops(rows: Iterable[TokenizedRow], size: ModelSize) -> int:
    """Useful operations of forward and backward over some rows. Frozen weights need no gradient: 4, not 6, a token."""
    rows = list(rows)
    tokens, each = sum(map(unique_tokens, rows)), 4 if size.adapter else 6
    pairs = sum(map(attention_pairs, rows))
    dense = tokens * (each * size.backbone + 6 * size.adapter)
    return dense + response_tokens(rows) * each * size.head + 12 * size.attention * pairs


class Peak:
    """Measures the matrix-product peak again and again, between the steps of a case.

    On some processors `align` multiplies float32 through oneDNN (`align.processor`): the peak is oneDNN's there, and
    what torch does by default is measured beside it.
    """

    def __init__(self, precision: str):
        import torch

        from align import processor

        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        self.matrix = torch.randn(SIDE, SIDE, device=self.device).to(dtype)
        self.precision, self.found, self.by_default = precision, list[float](), list[float]()  # operations a second
        self.onednn = self.device == "cpu" and precision == "fp32" and processor.multiply_through_onednn()

    def measure(self) -> None:
        """Adds the best of a few products."""
        import torch

        self.found.append(self._best_of_some())
        if self.onednn:
            products = torch.backends.mkldnn.matmul
            own, products.fp32_precision = products.fp32_precision, "ieee"
            self.by_default.append(self._best_of_some())
            products.fp32_precision = own

    def _best_of_some(self, times: int = 4) -> float:
        import torch

        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            torch.mm(self.matrix, self.matrix)
            if self.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - started)
        return 2 * SIDE**3 / min(seconds)

    @property
    def flops_per_second(self) -> float:
        return statistics.median(self.found)

    @property
    def default_flops_per_second(self) -> float:
        """Of torch's own float32 products."""
        return statistics.median(self.by_default or self.found)
