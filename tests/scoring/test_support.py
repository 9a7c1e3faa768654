"""Which models are scored the way we do it, and what is said of the others, which are left as they were."""

from __future__ import annotations

import logging

import pytest
import torch
import transformers
from torch import Tensor, nn

from align.data.collate import collate
from align.data.layout import PACKED
from align.scoring.attention import NAME
from align.scoring.head import causal_lm
from align.scoring.logprobs import response_logps
from align.scoring.support import check_head, packed_differs, use_packed
from tests import tiny
from tests.scoring.families import (
    ADAPTERS,
    FAMILIES,
    LONGEST,
    NARROW,
    SHAPE,
    VOCABULARY,
    build,
    naive_logps,
    plain,
    some_rows,
)

EXPERTS = {"num_experts_per_tok": 2, "num_experts": 4, "num_local_experts": 4, "moe_intermediate_size": 16}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "shared_expert_intermediate_size": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
SLIDES = f"its attention slides over 4 tokens, data.max_length is {LONGEST}"
OF_LINEAR = "it has layers of linear_attention"
UNSUITED = {
    "sliding window": ("Mistral", {"sliding_window": 4}, SLIDES),
    "sliding window in some layers": ("Gemma3Text", {"sliding_window": 4}, SLIDES),
    "sliding window that is turned on": (
        "Qwen2",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0},
        SLIDES,
    ),
    "ALiBi": ("Bloom", {"n_head": 4, "n_layer": 2}, "the attention of BloomForCausalLM cannot be replaced"),
    "ALiBi of another kind": ("Mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2}, "the attention of MptForCausalLM"),
    "recurrent": ("Rwkv", {"attention_hidden_size": 32}, "the attention of RwkvForCausalLM cannot be replaced"),
    "state space": ("Mamba", {"state_size": 4}, OF_LINEAR),
    "hybrid with linear attention": ("Qwen3Next", EXPERTS | LINEAR, OF_LINEAR),
    "hybrid with state space": ("Jamba", EXPERTS | {"attn_layer_period": 2, "attn_layer_offset": 1}, OF_LINEAR),
    "hybrid with convolution": ("Lfm2", {"layer_types": ["conv", "full_attention"]}, "it has layers of conv"),
    "attention sinks": ("GptOss", EXPERTS | {"layer_types": ["full_attention"] * 2}, "attention with s_aux"),
    "attention sinks and a window": ("GptOss", EXPERTS | {"sliding_window": 4}, SLIDES),
}
SUITED = {
    "window that is turned off": ("Qwen2", {"use_sliding_window": False, "sliding_window": 4}),
    "window as wide as any text": ("Mistral", {"sliding_window": LONGEST}),
    "experts": ("Mixtral", EXPERTS),
    "rotary on a part of each head": ("StableLm", {}),
    "learned positions": ("GPTBigCode", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
    "latent attention": (
        "DeepseekV3",
        EXPERTS
        | {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
        | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_key_value_heads": 4},
    ),
    "layers without positions": ("SmolLM3", {}),
}


def log_probs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return naive_logps(model, some_rows())


# packed


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [*FAMILIES, *ADAPTERS])
def test_good_models_are_made_ready(name, training):
    model = build(name).train(training)
    assert use_packed(model, LONGEST) is None
    assert causal_lm(model).config._attn_implementation == NAME
    assert model.training is training


@pytest.mark.parametrize("name", SUITED)
def test_further_good_models(name):
    family, more = SUITED[name]
    model = plain(family, **more)
    expected = log_probs(model)
    assert use_packed(model, LONGEST) is None
    with torch.no_grad():
        found = response_logps(model, collate(some_rows(), 0, PACKED))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gpt2_is_good():
    """Positions are learned, one embedding each: `position_ids` choose them."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_head=4, n_layer=2, bos_token_id=None, eos_token_id=1
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    expected = log_probs(model)
    assert use_packed(model, LONGEST) is None
    with torch.no_grad():
        found = response_logps(model, collate(some_rows(), 0, PACKED))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", UNSUITED)
def test_others_are_left_as_they_were(name):
    """The reason is a line that a user may read, and the model writes what it wrote."""
    family, more, reason = UNSUITED[name]
    model, untouched = plain(family, **more), plain(family, **more)
    before = untouched.config._attn_implementation
    found = use_packed(model, LONGEST)
    assert reason in found and "\n" not in found and len(found) < 200
    assert model.config._attn_implementation == before != NAME
    text = torch.arange(2, 14)[None]
    with torch.no_grad():
        assert torch.equal(
            model(input_ids=text, use_cache=False).logits, untouched(input_ids=text, use_cache=False).logits
        )


@pytest.mark.parametrize("window, longest, fits", [(64, 64, True), (63, 64, False), (16, 16, True)])
def test_a_window_is_wide_enough_for_as_many_tokens(window, longest, fits):
    """A token sees itself and window - 1 before it: all of a text of so many tokens."""
    assert (use_packed(plain("Mistral", sliding_window=window), longest) is None) is fits


class Forgetful(transformers.LlamaForCausalLM):
    """Takes `position_ids` and does not look at them."""

    def forward(self, *args, position_ids=None, **kwargs):
        return super().forward(*args, **kwargs)


class Blind(transformers.LlamaForCausalLM):
    """Takes a mask and does not look at it."""

    def forward(self, *args, attention_mask=None, **kwargs):
        return super().forward(*args, **kwargs)


class Picky(transformers.LlamaForCausalLM):
    """Does not take what is not two-dimensional."""

    def forward(self, *args, attention_mask=None, **kwargs):
        rows, columns = attention_mask.shape
        return super().forward(*args, attention_mask=attention_mask.view(rows, columns), **kwargs)


def of_class(kind: type) -> nn.Module:
    torch.manual_seed(0)
    return kind(transformers.LlamaConfig(**SHAPE)).eval()


@pytest.mark.parametrize(
    "kind, reason",
    [(Forgetful, "its log-probs differ by"), (Blind, "its log-probs differ by"), (Picky, "ValueError: ")],
)
def test_the_probe_finds_what_no_configuration_tells(kind, reason):
    model = of_class(kind)
    assert use_packed(model, LONGEST).startswith(reason)
    assert model.config._attn_implementation == "sdpa" and not model.training


def test_the_probe_leaves_the_mode_as_it_was():
    """Training, also where it fails."""
    model = build("llama").train()
    model.set_attn_implementation(NAME)
    assert packed_differs(model) is None and all(module.training for module in model.modules())
    failing = of_class(Picky).train()
    assert packed_differs(failing).startswith("ValueError") and all(module.training for module in failing.modules())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "qwen3"])
def test_half_precision_models(name, dtype):
    assert use_packed(build(name).to(dtype), LONGEST) is None


def test_half_precision_hides_no_lost_positions():
    """The tolerance is wide there, and the probe must still tell."""
    model = of_class(Forgetful)
    for weight in model.parameters():
        weight.data *= 2
    assert "differ" in use_packed(model.bfloat16(), LONGEST)


def test_transformers_says_nothing_of_its_own(caplog):
    """It warns of models whose attention cannot be set, in its words, which are not the user's."""
    with caplog.at_level(logging.WARNING, logger="transformers.modeling_utils"):
        use_packed(plain("Bloom", n_head=4, n_layer=2), LONGEST)
        assert not caplog.records
        assert logging.getLogger("transformers.modeling_utils").level == logging.WARNING


# the head


@pytest.mark.parametrize("name", [*FAMILIES, *NARROW, *ADAPTERS])
@pytest.mark.parametrize("training", [True, False])
def test_check_head_finds_nothing(name, training):
    model = build(name).train(training)
    assert check_head(model) < 1e-5
    assert model.training is training
    assert "forward" not in vars(causal_lm(model).get_output_embeddings())


@pytest.mark.parametrize("name", ["llama", "gemma2, soft-capped", "lora on the head"])
def test_check_head_with_our_attention(name):
    model = build(name)
    assert use_packed(model, LONGEST) is None and check_head(model) < 1e-5


class Doubled(transformers.LlamaForCausalLM):
    """Does to its logits what no configuration tells."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = output.logits * 2
        return output


def test_check_head_finds_a_secret_scale():
    assert check_head(of_class(Doubled)) > 0.1


def test_check_head_finds_a_scale_of_another_meaning():
    """HyperCLOVA X multiplies by `logits_scaling`, Granite divides by it."""
    assert check_head(plain("HyperCLOVAX", logits_scaling=3.0)) > 0.1


def test_small_vocabularies_can_be_probed():
    """The probe's tokens are of the vocabulary, however small."""
    model = plain("Llama", vocab_size=5)
    assert check_head(model) < 1e-5 and use_packed(model, LONGEST) is None


def test_autocast_around_it_changes_nothing():
    """A frozen reference is loaded when it is first asked, which is within a step in bf16."""
    with torch.autocast("cpu", torch.bfloat16):
        assert use_packed(tiny.llama(), 512) is None
        assert check_head(tiny.llama()) < 1e-5
