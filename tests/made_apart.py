"""Bases of three kinds of MLP and adapters of random weights that were made apart on them; fixtures in conftest.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from peft_unierase import UniEraseConfig
from peft_unierase.lm.structure import find_mlp_projections

IDS = torch.tensor([[3, 4, 5, 6, 7, 8]])
WIDTH = 32
KINDS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"intermediate_size": WIDTH}),
    "phi3": (Phi3ForCausalLM, Phi3Config, {"intermediate_size": WIDTH, "pad_token_id": 0}),
    "gpt2": (GPT2LMHeadModel, GPT2Config, {"n_inner": WIDTH}),
}
RANK = 3


def base_of(folder: Path) -> Any:
    """The base, with biases that are not zero where it has any."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def config_of(model: Any, **changes: Any) -> UniEraseConfig:
    """An adapter of edits of rank 3, one of rank 2, and a token; erasures of one base choose alike."""
    names = find_mlp_projections(model)[1]
    last = model.get_input_embeddings().weight.shape[0] - 1
    told: dict[str, Any] = {
        "target_modules": names,
        "r": RANK,
        "rank_pattern": {names[0]: 2},
        "token_id": last - 2,
        "spare_tokens": [[last - 1, "[UNL-2]"], [last, "[UNL-3]"]],
        "init_weights": False,
        "inference_mode": True,
        "task_type": "CAUSAL_LM",
    }
    return UniEraseConfig(**{**told, **changes})


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits
