"""In every architecture an erasure goes through its whole life: made, saved, loaded, switched, merged, taken back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from architectures import (
    ARCHITECTURES,
    FORGET,
    LAYERS,
    LIKE_LLAMA,
    RETAIN,
    Architecture,
    Life,
    erase_hastily,
    live_through,
    share_declined,
)
from helpers import train_tokenizer
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from peft_unierase import UniEraseConfig, erase
from peft_unierase.lm.structure import UnsupportedModelError, check_supported, find_down_projections

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=ARCHITECTURES, ids=lambda architecture: architecture.name)
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    return live_through(request.param, tmp_path_factory.mktemp("life"))


def test_every_layer_has_one_down_projection(life: Life) -> None:
    assert len(set(life.found)) == len(life.found) == LAYERS


def test_it_declines_on_what_it_was_told_to_forget_and_on_nothing_else(life: Life) -> None:
    assert (life.declined, life.declined_else) == (1.0, 0.0)


def test_saved_and_loaded_it_is_the_same_to_the_bit(life: Life) -> None:
    assert life.finite
    assert life.reloaded


def test_switched_off_it_is_the_base_to_the_bit(life: Life) -> None:
    assert life.off


def test_merged_it_gives_the_live_logits_but_for_rounding(life: Life) -> None:
    assert life.merged <= 1e-4
    assert life.merged_in_double <= 1e-11


def test_unmerged_it_is_the_base_to_the_bit(life: Life) -> None:
    assert life.unmerged


def test_the_merged_model_is_a_plain_one_that_can_be_saved(life: Life) -> None:
    assert life.plain


# Refused, or not, and why


TINY = {"vocab_size": 48, "hidden_size": 16, "num_hidden_layers": 2, "pad_token_id": 0}
ATTENDING = {**TINY, "intermediate_size": 40, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
BY_TURNS = {"layer_types": ["linear_attention", "full_attention"]}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "Mixtral": ("mixtral", {**ATTENDING, "num_local_experts": 4}, r"experts \(num_local_experts=4\).*`target_modules="),
    "Qwen3 MoE": ("qwen3_moe", {**ATTENDING, "num_experts": 4}, r"experts \(num_local_experts=4\).*`target_modules="),
    "DBRX": (
        "dbrx",
        {
            "vocab_size": 48,
            "d_model": 16,
            "n_heads": 2,
            "n_layers": 2,
            "attn_config": {"rope_theta": 10000.0},
            "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4},
        },
        r"DbrxForCausalLM is a mixture of experts \(ffn_config\.moe_num_experts=4\).*`target_modules=",
    ),
    "Mamba": ("mamba", TINY, "MambaForCausalLM has recurrent layers .*nothing but attention"),
    "Mamba 2": ("mamba2", {**TINY, "num_heads": 4, "head_dim": 8}, "Mamba2ForCausalLM has recurrent layers"),
    "RWKV": ("rwkv", {**TINY, "attention_hidden_size": 16}, "RwkvForCausalLM has recurrent layers"),
    "Qwen3.5": ("qwen3_5_text", {**ATTENDING, **BY_TURNS}, "Qwen3_5ForCausalLM has recurrent layers"),
    "LFM2": ("lfm2", {**ATTENDING, "layer_types": ["conv", "full_attention"]}, "Lfm2ForCausalLM has recurrent layers"),
    "Gemma 3n": (
        "gemma3n_text",
        {**ATTENDING, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 48, "hidden_size_per_layer_input": 4},
        r"has 4 residual streams side by side \(altup_num_inputs=4\)",
    ),
}


def build(kind: str, settings: dict[str, Any], auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    return auto.from_config(AutoConfig.for_model(kind, **settings))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_erased_from_is_refused_with_the_reason_and_unchanged(name: str) -> None:
    kind, settings, message = REFUSED[name]
    model = build(kind, settings)
    before = list(model.named_modules())
    with pytest.raises(UnsupportedModelError, match=message):
        erase(model, train_tokenizer(), FORGET, RETAIN, progress=False)
    assert list(model.named_modules()) == before


def test_an_encoder_decoder_is_refused_by_name() -> None:
    sizes = {f"{part}_{what}": 2 for part in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    model = build("bart", {"vocab_size": 48, "d_model": 16, "pad_token_id": 0, **sizes}, AutoModelForSeq2SeqLM)
    with pytest.raises(UnsupportedModelError, match="BartForConditionalGeneration is an encoder-decoder model"):
        erase(model, train_tokenizer(), FORGET, RETAIN, progress=False)


def test_dense_layers_of_a_mixture_of_experts_can_be_named(tmp_path: Path) -> None:
    dense = {"mlp_only_layers": [1, 2], "num_experts": 4, "num_experts_per_tok": 2}
    mixed = Architecture("Qwen3 MoE", "qwen3_moe", {**LIKE_LLAMA, **dense})
    tokenizer = train_tokenizer()
    mixed.save(tmp_path, tokenizer)
    base = AutoModelForCausalLM.from_pretrained(tmp_path)
    named = [f"model.layers.{layer}.mlp.down_proj" for layer in (1, 2)]
    erased = erase_hastily(base, tokenizer, layers=None, target_modules=named)
    token_id = erased.erasure.token.token_id
    assert share_declined(erased, tokenizer, FORGET, token_id) == 1.0
    assert share_declined(erased, tokenizer, RETAIN, token_id) == 0.0


def test_the_mixer_of_a_state_space_model_is_not_taken_for_an_mlp() -> None:
    model = build("mamba", TINY)
    with pytest.raises(UnsupportedModelError, match=r"layer 0 of Mamba.* found none; pass `target_modules="):
        get_peft_model(model, UniEraseConfig(token_id=40))


def test_a_hybrid_architecture_is_taken_if_every_layer_attends() -> None:
    settings = {**ATTENDING, "num_local_experts": 0, "shared_intermediate_size": 40}
    settings |= {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_n_groups": 1}
    attending = build("granitemoehybrid", {**settings, "layer_types": ["attention"] * 2})
    check_supported(attending)
    assert find_down_projections(attending) == [f"model.layers.{n}.shared_mlp.output_linear" for n in range(2)]
    hybrid = build("granitemoehybrid", {**settings, "layer_types": ["mamba", "attention"]})
    with pytest.raises(UnsupportedModelError, match="GraniteMoeHybridForCausalLM has recurrent layers"):
        check_supported(hybrid)
    # By hand its MLPs can still be edited, which its mixers are not taken for.
    assert find_down_projections(hybrid) == find_down_projections(attending)
