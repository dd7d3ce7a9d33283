"""Down-projections are found by structure in many architectures; what is not supported is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from peft_unierase.tuner.structure import (
    UnsupportedModelError,
    check_supported,
    find_down_projections,
    find_token_modules,
    projection_shape,
)

SMALL = {
    "vocab_size": 48,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "mistral": SMALL,
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 32},
    "gemma2": {**SMALL, "head_dim": 16},
    "phi3": SMALL,
    "olmo2": SMALL,
    "stablelm": SMALL,
    "gpt2": {"vocab_size": 48, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 32},
    "gpt_neox": SMALL,
    "opt": {**SMALL, "ffn_dim": 40, "word_embed_proj_dim": 16, "max_position_embeddings": 32},
    "bloom": {"vocab_size": 48, "hidden_size": 16, "n_layer": 3, "n_head": 2},
    "falcon": {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2},
}


def build(kind: str, options: dict[str, Any]) -> Any:
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **options))


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_one_down_projection_a_layer_is_found(kind: str) -> None:
    model = build(kind, ARCHITECTURES[kind])
    names = find_down_projections(model)
    assert len(names) == 3
    for name in names:
        inputs, outputs = projection_shape(model.get_submodule(name)) or (0, 0)
        assert outputs == 16
        assert inputs > outputs
        assert "attn" not in name
        assert "attention" not in name.rsplit(".", 2)[-2]


def test_embedding_and_head_are_found_by_name_also_when_tied() -> None:
    model = build("llama", {**SMALL, "tie_word_embeddings": True})
    assert find_token_modules(model) == ["model.embed_tokens", "lm_head"]


def test_a_mixture_of_experts_is_refused_with_the_way_out() -> None:
    model = build("mixtral", {**SMALL, "num_local_experts": 4})
    with pytest.raises(UnsupportedModelError, match=r"mixture of experts \(num_local_experts=4\).*target_modules"):
        check_supported(model)
    check_supported(model, target_modules=["model.layers.1.self_attn.o_proj"])


def test_an_encoder_decoder_is_refused() -> None:
    config = AutoConfig.for_model(
        "t5", vocab_size=48, d_model=16, d_ff=32, num_layers=2, num_heads=2, d_kv=8, decoder_start_token_id=0
    )
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        check_supported(AutoModelForSeq2SeqLM.from_config(config))


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no output head"):
        check_supported(AutoModel.from_config(AutoConfig.for_model("llama", **SMALL)))


def test_a_plain_module_is_refused_with_the_way_out() -> None:
    with pytest.raises(UnsupportedModelError, match="target_modules"):
        find_down_projections(torch.nn.Sequential(torch.nn.Linear(4, 4)))
