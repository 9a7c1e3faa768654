"""Likra's likelihood ratio: two heads on one base, to score, rank and write answers (objective `likra`).

https://arxiv.org/abs/2503.14391 (Hamdan and Yuret, 2025). A head is the base with a LoRA adapter; without the positive
adapter the base is the positive head. The score of an answer is a sum over its tokens, end of turn included,

    w+ log p+ - w- log p-

of log-probs of either head over the whole vocabulary, not normalised again. Both heads are scored in one pass of one
model (`align.scoring.answers`), each reading the prompt once for all answers.

For writing, the ratio alone would take tokens that no head means: it is large wherever p- is tiny. So only tokens with
p+ >= c max p+ are open (contrastive decoding, https://arxiv.org/abs/2210.15097), and w- below 1/2 is advised. The
positive head writes, with transformers' own cache; the processor keeps the negative head's.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor

from align import models, precision
from align.data.examples import Example, Prompt, Response
from align.data.ledger import Ledger
from align.data.tokenize import TokenizedRow, encode_prompt, encode_row
from align.errors import UserError, shorten
from align.generation import generate
from align.objectives import NEGATIVE, POSITIVE
from align.objectives.likra import HEADS
from align.run import HEADS_FILE, find_heads
from align.scoring.answers import Head, answer_logps, layout_for
from align.scoring.head import causal_lm
from align.scoring.routing import Routing, routing_of

if TYPE_CHECKING:
    from align.recipe import Model

TOKENS_AT_ONCE = 4096


def describe(model: Model, heads: list[str]) -> str:
    """The text of likelihood_ratio.json: the base, the adapters beside it, and the weights of their log-probs."""
    path = Path(model.path).expanduser()
    base = str(path.resolve()) if path.exists() else model.path
    weights = {"positive_weight": 1.0, "negative_weight": 1.0 if HEADS[NEGATIVE] in heads else 0.0}
    return json.dumps({"model": {"path": base, "revision": model.revision}, "heads": heads, **weights}, indent=2) + "\n"


class LikelihoodRatioModel:
    """Scores, ranks and writes answers by w+ log p+ - w- log p-."""

    def __init__(self, model: nn.Module, tokenizer, *, positive_weight: float, negative_weight: float, in_bf16: bool):
        self.model, self.tokenizer, self.in_bf16 = model, tokenizer, in_bf16
        self.positive_weight, self.negative_weight = positive_weight, negative_weight
        self.max_length = getattr(causal_lm(model).config.get_text_config(), "max_position_embeddings", 1 << 20)
        self.layout = layout_for(model, self.max_length)

    @classmethod
    def from_pretrained(
        cls, folder: str | Path, *, model: Model | None = None, arithmetic: str = "auto", device: str | None = None
    ) -> LikelihoodRatioModel:
        """The heads in a run folder, its final/ or a snapshot, on the base they were trained on.

        `model` is another place of that base, or one that may run code of its own. `arithmetic` is `train.precision`
        of a recipe. Raises UserError if the folder holds no heads, or they do not fit the base.
        """
        from align.recipe import Model as Place

        file = find_heads(folder)
        if file is None:
            what = f"there is no {HEADS_FILE}, neither here nor in final/"
            raise UserError(shorten(str(folder), 160), what, "name the folder of a finished run of the objective likra")
        given = read_description(file)
        model = model or Place(**given["model"])
        in_bf16 = precision.choose(arithmetic).name == precision.BF16
        base = models.load_model(model, dtype=torch.bfloat16 if in_bf16 else torch.float32)
        policy = models.load_adapters(base, {name: file.parent / name for name in given["heads"]})
        Routing({role: name for role, name in HEADS.items() if name in given["heads"]}, POSITIVE).attach(policy)
        policy.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        weights = {name: given[name] for name in ("positive_weight", "negative_weight")}
        return cls(policy, models.load_tokenizer(model), in_bf16=in_bf16, **weights)

    @property
    def heads(self) -> dict[str, Head]:
        """Who scores: the base, and each head that has an adapter."""
        own = routing_of(causal_lm(self.model)).adapters
        return {"base": Head(self.model, 0), **{name: Head(self.model, role) for role, name in own.items()}}

    def logps(self, prompt: Prompt, answers: Sequence[str], *, tokens_at_once: int = TOKENS_AT_ONCE) -> dict:
        """{"base": (K,), "positive": (K,), "negative": (K,)} log-prob of each answer in nats, of the heads there are.

        Raises UserError if an answer does not fit behind the prompt.
        """
        return self._logps(self._row(prompt, answers), tokens_at_once)

    def score(self, prompt: Prompt, answers: Sequence[str], *, normalize: bool = False) -> Tensor:
        """(K,) w+ log p+ - w- log p- of each answer, in nats; `normalize`: divided by its number of tokens."""
        row = self._row(prompt, answers)
        logps = self._logps(row, TOKENS_AT_ONCE)
        positive, negative = logps.get("positive", logps["base"]), logps.get("negative", logps["base"])
        scores = self.positive_weight * positive - self.negative_weight * negative
        return scores / torch.tensor([len(one.ids) for one in row.responses]) if normalize else scores

    def rank(self, prompt: Prompt, answers: Sequence[str], *, normalize: bool = False) -> list[int]:
        """The numbers of the answers, the best first."""
        return self.score(prompt, answers, normalize=normalize).argsort(descending=True, stable=True).tolist()

    def generate(
        self, prompts: Sequence[Prompt], *, max_new_tokens: int = 64, plausibility: float = 0.1, cached: bool = True
    ) -> list[str]:
        """The likeliest token at each step, by the ratio, among those with p+ >= plausibility * max p+."""
        ids = [encode_prompt(self.tokenizer, prompt) for prompt in prompts]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.in_bf16):
            processor = self.processor([len(one) for one in ids], plausibility=plausibility, cached=cached)
            answers = generate(self.model, self.tokenizer, ids, max_new_tokens, [processor])
        return [self.tokenizer.decode(answer, skip_special_tokens=True).strip() for answer in answers]

    def processor(self, lengths: Sequence[int], *, plausibility: float, cached: bool = True) -> LogitsProcessor:
        """The processor for one call of `model.generate` on prompts of these lengths in tokens, padded on the left."""
        negative = CachedHead(self.model, NEGATIVE, lengths, cached=cached)
        return LikelihoodRatioProcessor(negative, self.positive_weight, self.negative_weight, plausibility)

    @property
    def _device(self) -> torch.device:
        return causal_lm(self.model).get_input_embeddings().weight.device

    def _logps(self, row: TokenizedRow, tokens_at_once: int) -> dict[str, Tensor]:
        rows = {name: (head, [row]) for name, head in self.heads.items()}
        how = {"layout": self.layout, "tokens_at_once": tokens_at_once, "in_bf16": self.in_bf16}
        return {name: found[0] for name, found in answer_logps(rows, **how).items()}

    def _row(self, prompt: Prompt, answers: Sequence[str]) -> TokenizedRow:
        if not answers:
            raise UserError("answers", "there are none", "give at least one")
        ledger = Ledger()
        example = Example(prompt, tuple(Response(text, "positive") for text in answers), "", "answers")
        row = encode_row(self.tokenizer, example, roles={POSITIVE}, max_length=self.max_length, ledger=ledger)
        if len(row.responses) < len(answers) or ledger.dropped["response truncated"]:
            raise UserError("answers", "one does not fit behind the prompt", f"at most {self.max_length} tokens")
        return row


class CachedHead:
    """The next-token logits of one head, for a batch that grows token by token; keeps its own keys and values."""

    def __init__(self, model: nn.Module, role: int, lengths: Sequence[int], *, cached: bool):
        self.model, self.role, self.cached = model, role, cached
        self.lengths = torch.tensor(lengths)  # (B,) tokens of each prompt, which is padded on the left
        self.width, self.seen, self.cache = int(self.lengths.max()), 0, None

    @torch.no_grad()
    def logits(self, input_ids: Tensor) -> Tensor:
        """(B, V) after `input_ids` (B, S), whose first tokens are those of the last call.

        Raises ValueError for another number of rows: beams are not supported.
        """
        if len(input_ids) % len(self.lengths) or not self.seen < input_ids.shape[1]:
            raise ValueError(f"{tuple(input_ids.shape)} tokens do not go on from {len(self.lengths)} prompts")
        copies = len(input_ids) // len(self.lengths)  # num_return_sequences
        first = (self.width - self.lengths).repeat_interleave(copies).to(input_ids.device)  # (B,)
        attended = torch.arange(input_ids.shape[1], device=input_ids.device) >= first[:, None]  # (B, S)
        positions = (attended.cumsum(-1) - 1).clamp(min=0)
        fresh = slice(self.seen if self.cached else 0, None)
        with routing_of(causal_lm(self.model)).set(self.role):
            result = self.model(
                input_ids=input_ids[:, fresh], attention_mask=attended.long(), position_ids=positions[:, fresh],
                past_key_values=self.cache, use_cache=self.cached, logits_to_keep=1,
            )  # fmt: skip
        if self.cached:
            self.cache, self.seen = result.past_key_values, input_ids.shape[1]
        return result.logits[:, -1]


class LikelihoodRatioProcessor(LogitsProcessor):
    """w+ log p+ - w- log p- in place of the positive head's scores, on tokens with p+ >= plausibility * max p+.

    For greedy decoding and sampling; other tokens get -inf. A new one for each call of `generate`.
    """

    def __init__(self, negative: CachedHead, positive_weight: float, negative_weight: float, plausibility: float):
        if not 0 <= plausibility <= 1:
            raise UserError("plausibility", f"{plausibility:g} is outside of 0..1", "0.1 is usual")
        self.negative, self.plausibility = negative, plausibility
        self.positive_weight, self.negative_weight = positive_weight, negative_weight

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # (B, S), (B, V) -> (B, V)
        positive = scores.float().log_softmax(-1)
        ratio = self.positive_weight * positive
        if self.negative_weight:
            ratio = ratio - self.negative_weight * self.negative.logits(input_ids).float().log_softmax(-1)
        if self.plausibility:
            least = positive.max(-1, keepdim=True).values + torch.tensor(self.plausibility).log()
            ratio = ratio.masked_fill(positive < least, -torch.inf)
        return ratio


def read_description(file: Path) -> dict:
    """The description, checked. Raises UserError."""
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
        known = {"path", "revision"}
        is_sound = (
            set(given["model"]) <= known and isinstance(given["model"]["path"], str)
            and given["heads"] and set(given["heads"]) <= set(HEADS.values())
            and all(isinstance(given[name], int | float) for name in ("positive_weight", "negative_weight"))
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError):
        is_sound = False
    if not is_sound:
        what = "is not what a run writes: model, heads, positive_weight, negative_weight"
        raise UserError(shorten(str(file), 160), what, "restore the file, or run the recipe again")
    return given
