"""Rewards of whole answers by a reward model: a sequence classifier of one label."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from align.data.templates import TemplateRefuses
from align.data.tokenize import encode_prompt, encode_response
from align.negatives.encoder import by_length, padded_ids
from align.negatives.pool import said
from align.negatives.scorer_models import load_reward_model

if TYPE_CHECKING:
    from align.negatives.scorers import Item

TOKENS_AT_ONCE = 4096


class RewardModel:
    """Reads a conversation through the model's chat template, or prompt and answer as a pair where it has none."""

    def __init__(self, path: str):
        self.model, self.tokenizer = load_reward_model(path)
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        longest = getattr(self.model.config, "max_position_embeddings", None) or self.tokenizer.model_max_length
        self.longest = min(longest, self.tokenizer.model_max_length)  # some number positions from 2 on

    @torch.inference_mode()
    def score(self, items: Sequence[Item]) -> list[float]:
        """The reward of each response; nan for what it cannot read whole."""
        ids, found = [self._ids(item) for item in items], [float("nan")] * len(items)
        fits = [place for place, one in enumerate(ids) if 0 < len(one) <= self.longest]
        for batch in by_length([len(ids[place]) for place in fits], TOKENS_AT_ONCE):
            places = [fits[index] for index in batch]
            own = [ids[place] for place in places]
            padded, mask = padded_ids(own, self._pad([one[-1] for one in own]), self.model.device)
            rewards = self.model(input_ids=padded, attention_mask=mask).logits[:, 0].float().tolist()
            for place, reward in zip(places, rewards, strict=True):
                found[place] = reward
        return found

    def _pad(self, last: Sequence[int]) -> int:
        """The token that fills up a batch whose texts end in `last`: the tokenizer's own, else one that ends none.

        The reward is read at the last token that is no padding.
        """
        if self.tokenizer.pad_token_id is None:
            self.model.config.pad_token_id = next(token for token in range(len(last) + 1) if token not in last)
        return self.model.config.pad_token_id

    def _ids(self, item: Item) -> list[int]:
        """The tokens of prompt and response; none where the chat template has no place for them."""
        if self.tokenizer.chat_template is None:
            return self.tokenizer(item.row.prompt_words, said(item.response))["input_ids"]
        example = item.row.example([item.response])
        try:
            prompt = encode_prompt(self.tokenizer, example.prompt)
            answer = example.responses[0]
            return [*prompt, *encode_response(self.tokenizer, example.prompt, prompt, answer.text, answer.calls)]
        except (TemplateRefuses, ValueError):
            return []
