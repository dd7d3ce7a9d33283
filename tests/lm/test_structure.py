"""Down-projections are found by structure in many architectures; what is not supported is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from architectures import ARCHITECTURES as MATRIX
from architectures import Architecture
from peft import get_peft_model
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from peft_unierase.guard.config import UniEraseConfig
from peft_unierase.lm.structure import (
    UnsupportedModelError,
    check_supported,
    find_decoder_layers,
    find_down_projections,
    find_mlp_projections,
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


# Of one MLP: what writes its hidden units, in the order of the modules, and the down-projection.
GATED = ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
FUSED = ["mlp.gate_up_proj", "mlp.down_proj"]
DENSE = ["mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
OTHERS = {
    "gpt2": ["mlp.c_fc", "mlp.c_proj"],
    "gptj": ["mlp.fc_in", "mlp.fc_out"],
    "opt": ["fc1", "fc2"],
    "phi": ["mlp.fc1", "mlp.fc2"],
    "nemotron": ["mlp.up_proj", "mlp.down_proj"],
    **dict.fromkeys(("phi3", "glm4"), FUSED),
    **dict.fromkeys(("gpt_neox", "falcon", "bloom"), DENSE),
}


@pytest.mark.parametrize("architecture", MATRIX, ids=lambda architecture: architecture.name)
def test_the_projections_of_every_mlp_are_found_with_the_down_projection_last(architecture: Architecture) -> None:
    with torch.device("meta"):
        model = build(architecture.kind, {"vocab_size": 512, "pad_token_id": 0, **architecture.settings})
    prefix, layers = find_decoder_layers(model)
    names = OTHERS.get(architecture.kind, GATED)
    assert find_mlp_projections(model) == [[f"{prefix}.{n}.{name}" for name in names] for n in range(len(layers))]


def test_they_are_found_under_adapters_and_in_the_shared_mlp_beside_experts() -> None:
    model = build("llama", SMALL)
    names = find_mlp_projections(model)
    get_peft_model(model, UniEraseConfig(target_modules=["up_proj", "down_proj"]))
    assert find_mlp_projections(model) == names
    experts = {"num_experts": 4, "moe_intermediate_size": 24, "shared_expert_intermediate_size": 40}
    shared = find_mlp_projections(build("qwen2_moe", {**SMALL, **experts}))
    assert shared[1] == [f"model.layers.1.mlp.shared_expert.{kind}_proj" for kind in ("gate", "up", "down")]


def test_an_mlp_of_another_form_has_its_down_projection_alone() -> None:
    model = build("llama", SMALL)
    mlp = model.model.layers[1].mlp
    mlp.gate_proj, mlp.up_proj = torch.nn.Linear(16, 20), torch.nn.Linear(16, 20)  # two halves of the hidden units
    assert find_mlp_projections(model)[1] == ["model.layers.1.mlp.down_proj"]
    assert len(find_mlp_projections(model)[0]) == 3


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
