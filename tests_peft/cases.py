"""What the suite is told about this tuner: models, configurations, words to exchange, what is left out and why."""

from __future__ import annotations

from typing import Any

import pytest

from peft_unierase import UniEraseConfig

SIZES = {"vocab_size": 128, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
LLAMA = {**SIZES, "model_type": "llama", "intermediate_size": 32, "num_key_value_heads": 2}
OPT = {**SIZES, "model_type": "opt", "vocab_size": 1024, "ffn_dim": 32, "word_embed_proj_dim": 16}

# Settings of random models, by folder. transformers looks in a folder before it looks on the Hub, so tests that name a
# model of the Hub's find the one here. The others are not called after their kind, because some skips for other methods
# go by such names.
MODELS: dict[str, dict[str, Any]] = {
    "tied": {**LLAMA, "tie_word_embeddings": True},
    "untied": {**LLAMA, "tie_word_embeddings": False},
    "conv1d": {**SIZES, "model_type": "gpt2", "n_inner": 32},
    "scaled": {**LLAMA, "model_type": "gemma", "head_dim": 4},
    "biased": {**SIZES, "model_type": "phi", "intermediate_size": 32, "tie_word_embeddings": False},
    "peft-internal-testing/tiny-random-OPTForCausalLM": OPT,
    "peft-internal-testing/opt-125m": {**OPT, "num_hidden_layers": 12},
    "trl-internal-testing/tiny-random-LlamaForCausalLM": LLAMA,
}
LORA_CONFIG = "peft-internal-testing/tiny-opt-lora-revision"

TOKEN = {"target_modules": ["conv1d"], "token_id": 1, "spare_tokens": [[0, "[UNL2]"]], "token_modules": ["emb", "lin0"]}
CUSTOM: dict[str, tuple[str, dict[str, Any]]] = {
    "edit": ("MLP", {"target_modules": ["lin0"]}),
    "edit by expression": ("MLP", {"target_modules": "lin1"}),
    "edits of rank 3": ("MLP", {"target_modules": ["lin0", "lin1"], "r": 3}),
    "edits of two ranks": ("MLP", {"target_modules": ["lin0", "lin1"], "rank_pattern": {"lin1": 3}}),
    "edit and module to save": ("MLP", {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}),
    "edit on Conv1D": ("EmbConv1D", {"target_modules": ["conv1d"]}),
    "token": ("EmbConv1D", TOKEN),
    "token alone": ("EmbConv1D", {**TOKEN, "target_modules": []}),
}
PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "same edits": ({"target_modules": ["lin0"]}, {"target_modules": ["lin0"]}),
    "different edits": ({"target_modules": ["lin0"]}, {"target_modules": ["lin1"]}),
    "different ranks": ({"target_modules": ["lin0"], "r": 3}, {"target_modules": ["lin0", "lin1"]}),
}
WHOLE = {"target_modules": ["lin0"], "modules_to_save": ["lin1"]}
ONLY_MIXED = {"whole modules": (WHOLE, WHOLE), "tokens": (TOKEN, TOKEN)}


def mixed(*names: str) -> list[tuple[str, UniEraseConfig, UniEraseConfig]]:
    """Pairs of configs for two rows of one batch."""
    pairs = {**PAIRS, **ONLY_MIXED}
    return [(name, *(UniEraseConfig(**{**pair, "init_weights": False}) for pair in pairs[name])) for name in names]


INTO, DOWN = ["gate_proj", "up_proj", "c_fc", "fc1"], ["down_proj", "mlp.c_proj", "fc2"]
DECODER: dict[str, dict[str, Any]] = {
    "edits": {"r": 2},
    "token": {"token_id": 2, "spare_tokens": [[5, "[UNL2]"]]},
    "whole MLPs": {"target_modules": [*INTO, *DOWN], "rank_pattern": dict.fromkeys(INTO, 3)},
}

# What stands in the place of PEFT's own lists of methods and models: by file, and by the list's name or that of the one
# test that has it.
LISTS: dict[str, dict[str, list[Any]]] = {
    "test_custom_models.py": {
        "TEST_CASES": [(name, model, UniEraseConfig, config) for name, (model, config) in CUSTOM.items()],
        "ALL_PEFT_CONFIG_CLASSES": [UniEraseConfig],
        "MULTIPLE_ACTIVE_ADAPTERS_TEST_CASES": [
            (name, "unierase", UniEraseConfig, *({**config, "init_weights": False} for config in pair))
            for name, pair in PAIRS.items()
        ],
        "MIXED_ADAPTER_TEST_CASES": mixed("same edits"),
        "test_mixed_adapter_batches_different_target_layers": mixed("different edits"),
        "test_mixed_adapter_batches_partly_overlapping_target_layers": mixed("different ranks"),
        "test_mixed_adapter_batches_multiple_modules_to_save": mixed("whole modules"),
        "test_mixed_adapter_batches_lora_conv1d_emb": mixed("tokens"),
        "test_multiple_adapters_mixed_modules_to_save": [UniEraseConfig],
        "test_multiple_adapters_mixed_modules_to_save_order_switched": [UniEraseConfig],
        "test_adapter_name_makes_no_difference": [UniEraseConfig(target_modules=["lin0"], init_weights=False)],
    },
    "test_decoder_models.py": {
        "PEFT_DECODER_MODELS_TO_TEST": [name for name in MODELS if "/" not in name],
        "ALL_CONFIGS": [
            pytest.param(UniEraseConfig, {"task_type": "CAUSAL_LM", **config}, id=name)
            for name, config in DECODER.items()
        ],
    },
    "test_config.py": {
        "ALL_CONFIG_CLASSES": [(UniEraseConfig, {}), (UniEraseConfig, {"token_id": 2, "rank_pattern": {"up_proj": 1}})],
        "LAYER_INDEXING_CONFIG_CLASSES": [(UniEraseConfig, {})],
    },
}

# Regular expressions and what stands in their place, by file. Two files are written for one method and run with ours
# under its name. In the others mixed batches are skipped for most methods, and in one place they have to be equal to
# 1e-8 near 0, which fp32 cannot promise.
RENAMED: dict[str, dict[str, str]] = {
    "test_custom_models.py": {r"(output_mixed\[\d?::3\])\)": r"\1, atol=1e-5)"},
    "test_decoder_models.py": {r"config_cls != LoraConfig:(?=\s+pytest.skip\(.Mixed)": "False:"},
    "testing_common.py": {r"config_cls not in \(LoraConfig,( RoadConfig)?\):": "False:"},
    "test_low_level_api.py": {
        r"\bLoraConfig\b": "UniEraseConfig",
        r"\binit_lora_weights\b": "init_weights",
        r"\b(lora_alpha|lora_dropout|bias)=[\w.\"]+,?": "",
        r"\blora(?=_|\" in)|(?<=foo_)lora": "unierase",
        r"(unierase_[AB])\.weight": r"\1",
        r"self_attn\.q_proj": "fc2",
    },
    "test_lora_conversion.py": {
        r"\bLoKrConfig\(init": "UniEraseConfig(r=2, init",
        r"\bLoKrConfig\b": "UniEraseConfig",
        r"\.lokr\b": ".unierase",
        r"\br=16\b": "r=8",  # what the conversion keeps: all directions of a random edit weigh about the same
    },
}

# What says nothing about this tuner or asks for what it refuses, by file and reason: parts of the ids of tests.
LEFT_OUT: dict[str, dict[str, tuple[str, ...]]] = {
    "test_custom_models.py": {
        "for PEFT `disable_adapter()` goes before `adapter_names`; here an erasure named while off is refused": (
            "::test_mixed_adapter_batches_disabled[",
            "::test_disable_adapter_is_reentrant[",
        ),
    },
    "test_decoder_models.py": {
        "embeddings need gradients where an input row is trained; the suite skips PEFT's own trainable tokens here": (
            "::test_prepare_for_training_parametrized[token-",
        ),
    },
    "test_low_level_api.py": {
        "about another method": (
            "::test_inject_adapter_in_model_rejects_shared_state_tuners[",
            *(f"_target_same_layers[{method}-" for method in ("AdaLoRA", "IA3", "LoKr", "RandLoRA")),
            "::test_base_model_module_named_like_peft_prefix[LoKrConfig]",
        ),
        "not a causal language model": (
            *(f"_target_same_layers[LoRA-{model}]" for model in ("Bert", "Bart", "Roberta")),
            "::test_inject_from_state_dict_stable_diffusion",
            "_with_weight_conversion",
            "::test_prefix_removal_is_undone",
        ),
        "target_parameters is a setting of LoRA's": ("_transformers_target_parameters_",),
        "PEFT looks at the shapes of LoRA's matrices alone": ("::test_save_pretrained_warns_for_unsharded_state_dict",),
    },
    "test_lora_conversion.py": {
        "about another method, or none": (
            "::TestMissLoraConversion::",
            "::TestKasaLoraConversion::",
            "::test_prompt_learning_model_raises",
            "::test_peft_model_but_no_support_raises",
            "::test_converted_lora_to_lora_works_and_warns",
            "::test_convert_model_with_trainable_bias_raises",
            "::test_no_peft_layer_raises",
        ),
        "an edit of a convolution is refused": ("::test_model_with_unsupported_layers_raises",),
    },
}
