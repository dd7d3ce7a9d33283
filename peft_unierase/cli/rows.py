"""A base with as many vocabulary rows as an adapter was made on.

Whoever adds tokens before training an adapter resizes the base, and the adapter then loads on a base of that size only.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ..lm.structure import find_token_modules


def wanted_rows(model: Any, config: Any, weights: Mapping[str, torch.Tensor]) -> int:
    """The vocabulary rows of the base that an adapter was made on; the model's own number if the adapter is silent.

    Args:
        model: The base as it is.
        config: The adapter's configuration, of any PEFT type.
        weights: Its tensors by name.
    """
    rows, width = model.get_input_embeddings().weight.shape
    sizes = [size for tensor in _of_tokens(model, weights) for size in tensor.shape if size != width]
    # The others are ranks, and rows of single tokens that were trained.
    if sizes and max(sizes) > rows // 2:
        return max(sizes)
    return max([rows, *(index + 1 for index in _trained_tokens(config))])


def brings_rows(model: Any, weights: Mapping[str, torch.Tensor]) -> bool:
    """Whether an adapter has tensors of the embedding or the head, which may replace the base's own."""
    return bool(_of_tokens(model, weights))


def give_rows(model: Any, rows: int) -> None:
    """Grow or shrink embedding and head to this many rows; a new row is the mean of the old ones.

    Such a row's logit is the mean of the others, so that no answer of the base ever has its token.
    """
    before = model.get_input_embeddings().weight.shape[0]
    with torch.random.fork_rng(devices=[]):  # transformers draws new rows, and they are overwritten here
        model.resize_token_embeddings(rows, mean_resizing=False)
    if rows <= before:
        return
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            for tensor in (module.weight, getattr(module, "bias", None)):
                if tensor is not None and len(tensor) == rows:
                    tensor[before:] = tensor[:before].float().mean(dim=0).to(tensor.dtype)


def own_rows(model: Any) -> list[torch.Tensor]:
    """Copies of embedding and head as they are without adapters, `(rows, d)` each."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return [_bare(base.get_submodule(name)).weight.detach().clone() for name in find_token_modules(base)]


def _bare(module: Any) -> Any:
    """The base's own module inside those that PEFT put around it."""
    for name in ("original_module", "base_layer"):
        inner = getattr(module, name, None)
        if isinstance(inner, nn.Module):
            return _bare(inner)
    return module


def _of_tokens(model: Any, weights: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    names = find_token_modules(model)
    return [tensor for key, tensor in weights.items() if any(f".{name}." in f".{key}." for name in names)]


def _trained_tokens(config: Any) -> list[int]:
    """Ids of the single tokens whose rows were trained."""
    told = getattr(config, "trainable_token_indices", None) or getattr(config, "token_indices", None) or []
    groups = told.values() if isinstance(told, Mapping) else [told]
    return [index for group in groups for index in group]
