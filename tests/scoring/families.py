"""Tiny random models of many families, rows for them, and the plain way to their log-probs and gradients."""

from __future__ import annotations

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from align.data.tokenize import TokenizedResponse, TokenizedRow
from align.scoring.head import causal_lm
from align.scoring.support import use_packed

torch.set_num_threads(1)  # several wait for each other longer than such models compute

VOCABULARY, HIDDEN = 101, 32  # unlike any other size here
LONGEST = 64  # tokens of a text: no window of FAMILIES is shorter
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.15,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 1,
}
FAMILIES = {
    "llama": ("Llama", {"tie_word_embeddings": False}),
    "llama tied": ("Llama", {"tie_word_embeddings": True}),
    "llama without grouped queries": ("Llama", {"num_key_value_heads": 4}),
    "llama, one key-value head": ("Llama", {"num_key_value_heads": 1}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {}),
    "gemma": ("Gemma", {}),
    "gemma2, soft-capped": (
        "Gemma2",
        {"final_logit_softcapping": 1.5, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 1},
    ),
    "gemma3": ("Gemma3Text", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral, wide window": ("Mistral", {"sliding_window": 64}),
    "granite, scaled": ("Granite", {"logits_scaling": 3.0, "attention_multiplier": 0.5}),
    "cohere, scaled": ("Cohere", {"logit_scale": 0.25}),
    "phi, head with bias": ("Phi", {}),
}
NARROW = {"mistral, sliding window": ("Mistral", {"sliding_window": 4})}  # padded alone
ADAPTERS = {"lora": ["q_proj", "down_proj"], "lora on the head": ["v_proj", "lm_head"]}
CLASSES = {"Gemma3Text": "Gemma3ForCausalLM"}


def build(name: str, seed: int = 0, **shape) -> nn.Module:
    """A tiny random model of a family, or a Llama with LoRA matrices of which none is 0; in evaluation mode."""
    family, more = (FAMILIES | NARROW).get(name, FAMILIES["llama"])
    model = plain(family, seed, **more | shape)
    if name in ADAPTERS:
        config = LoraConfig(r=3, lora_dropout=0.0, target_modules=ADAPTERS[name], task_type="CAUSAL_LM")
        model = get_peft_model(model, config).eval()
    for parameter in model.parameters():  # biases and LoRA's B begin at 0, norms at 1
        if parameter.ndim == 1 or not parameter.any():
            parameter.data += 0.2 * torch.randn(parameter.shape)
    return model


def plain(family: str, seed: int = 0, **more) -> nn.Module:
    """A causal language model of transformers with its own initial weights, in evaluation mode."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{family}Config")(**SHAPE | more)
    return getattr(transformers, CLASSES.get(family, f"{family}ForCausalLM"))(config).eval()


def eager(model: nn.Module) -> nn.Module:
    """With the attention that transformers writes out, which alone knows Gemma 2's soft-capping."""
    causal_lm(model).set_attn_implementation("eager")
    return model


def ready(model: nn.Module) -> nn.Module:
    """For the packed layout."""
    assert use_packed(model, LONGEST) is None
    return model


def some_rows() -> list[TokenizedRow]:
    """Three prompts of unequal length with 2, 1 and 3 responses of unequal length: more tokens than HIDDEN."""
    generator = torch.Generator().manual_seed(3)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, VOCABULARY, (count,), generator=generator).tolist())

    shapes = {5: (9, 1), 2: (17,), 8: (4, 12, 6)}
    return [
        TokenizedRow(ids(prompt), tuple(TokenizedResponse(ids(length), 1) for length in lengths), None)
        for prompt, lengths in shapes.items()
    ]


def logits_one_by_one(model: nn.Module, rows: list[TokenizedRow]) -> list[tuple[Tensor, Tensor]]:
    """(logits, targets) of each response, every one forwarded alone: no padding, no trees, no chunks."""
    found = []
    for row in rows:
        for response in row.responses:
            input_ids = torch.tensor([[*row.prompt_ids, *response.ids]], device=model.device)
            logits = model(input_ids=input_ids, use_cache=False).logits[0]
            found.append((logits[len(row.prompt_ids) - 1 : -1], torch.tensor(response.ids, device=model.device)))
    return found


def naive_logps(model: nn.Module, rows: list[TokenizedRow]) -> Tensor:
    """(N, T) like `response_logps`."""
    logps = [z.log_softmax(-1).gather(-1, y[:, None])[:, 0] for z, y in logits_one_by_one(model, rows)]
    return nn.utils.rnn.pad_sequence(logps, batch_first=True)


def gradients(logps: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """Of a sum in which each token has a weight of its own, for all weights that train."""
    weights = torch.randn(logps.shape, generator=torch.Generator().manual_seed(4)).to(logps.device)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return dict(zip(trained, torch.autograd.grad((logps * weights).sum(), list(trained.values())), strict=True))


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    """To `tolerance`, of the largest value of a weight's gradient where that is above 1."""
    assert found.keys() == expected.keys() and found
    for name, values in expected.items():
        assert values.any(), f"{name} has no gradient to compare"
        scale = max(1.0, values.abs().max().item())
        torch.testing.assert_close(found[name] / scale, values / scale, rtol=tolerance, atol=tolerance, msg=name)
