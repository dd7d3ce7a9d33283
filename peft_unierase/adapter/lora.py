"""The same erasure as a stock LoRA checkpoint, for whoever loads adapters without this package.

The edits are low-rank updates already and stay as they are. For [UNL]'s rows there are two layouts. `T` keeps them as
PEFT's trainable tokens: exact, small, but PEFT cannot stack it, it has no place for two different rows where embedding
and head are tied, and neither vLLM nor llama.cpp's converter takes it. `L` writes each row as a rank-one LoRA on the
whole matrix: exact up to rounding, it stacks, both of them read it, and in PEFT it goes with tied matrices as long as
it is not merged; its files grow with the vocabulary. Both have one rank throughout, padded with zeros, and
`lora_alpha == r`: some loaders scale by the one rank that the config names, others by each tensor's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from safetensors.torch import save_file
from transformers.pytorch_utils import Conv1D

from ..errors import InputError
from ..lm.weights import plain_weight
from ..storage.names import WEIGHTS_NAME
from .active import check_together
from .edit import EditLayer
from .swap import SwappingLayer
from .token_row import InputRowLayer, TokenRowLayer

LAYOUTS = ("T", "L")
PREFIX = "base_model.model."


def default_layout(model: PeftModel) -> str:
    """`L` where embedding and head are tied, and `T` elsewhere."""
    return "L" if getattr(model.get_base_model().config, "tie_word_embeddings", False) else "T"


def lora_form(
    model: PeftModel, adapters: Sequence[str] | None = None, layout: str | None = None
) -> tuple[LoraConfig, dict[str, torch.Tensor]]:
    """Erasures as one LoRA: its config and its tensors, as PEFT names them in a file, in fp32.

    Args:
        model: A model with erasures, not merged.
        adapters: Which; several are fused into one. By default those that are on.
        layout: `T` or `L`, see above; by default the one that fits the base.

    Raises:
        ValueError: No such layout or adapter, one that cannot be put that way, adapters are merged, or two of them
            cannot be on together.
    """
    adapters = list(model.active_adapters if adapters is None else adapters)
    layout = layout or default_layout(model)
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is none; there are {' and '.join(LAYOUTS)}")
    if not adapters:
        raise InputError("there is no adapter to put as a LoRA; name at least one")
    check_together(model, adapters)
    if layout == "T" and default_layout(model) == "L":
        raise InputError("layout T has one row for embedding and head, which are tied in this base; take layout L")
    pairs: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    rows: dict[str, Any] = {}
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, SwappingLayer) and module.merged:
            raise InputError("adapters are merged; call `unmerge_adapter()` first")
        if isinstance(module, EditLayer) and (held := module.held_adapters(adapters)):
            own = [(module.unierase_A[each].detach(), module.unierase_B[each].detach()) for each in held]
            pairs[name] = (torch.cat([a for a, _ in own]), torch.cat([b for _, b in own], dim=1))
        elif isinstance(module, TokenRowLayer) and (held := module.held_adapters(adapters)):
            rows[name] = (module, dict(module.rows(held)))
    if layout == "L":
        pairs.update({name: _row_factors(*own) for name, own in rows.items()})
    rank = max((len(a) for a, _ in pairs.values()), default=1)
    tensors: dict[str, torch.Tensor] = {}
    for name, (a, b) in pairs.items():
        pad = rank - len(a)
        embedding = name in rows and isinstance(rows[name][0], InputRowLayer)
        stem, end = ("lora_embedding_", "") if embedding else ("lora_", ".weight")
        padded = (torch.nn.functional.pad(a, (0, 0, 0, pad)), torch.nn.functional.pad(b, (0, pad)))
        for part, value in zip("AB", padded, strict=True):
            tensors[f"{PREFIX}{name}.{stem}{part}{end}"] = _plain(value)
    if layout == "T":
        for name, (_, own) in rows.items():
            stacked = torch.stack([own[token_id] for token_id in sorted(own)])
            tensors[f"{PREFIX}{name}.token_adapter.trainable_tokens_delta"] = _plain(stacked)
    config = model.peft_config[adapters[0]]
    edits = [module for module in model.get_base_model().modules() if isinstance(module, EditLayer)]
    return LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted(pairs),
        trainable_token_indices={name: sorted(own) for name, (_, own) in rows.items()} if layout == "T" else None,
        fan_in_fan_out=any(isinstance(edit.get_base_layer(), Conv1D) for edit in edits),
        task_type=config.task_type,
        base_model_name_or_path=config.base_model_name_or_path,
        inference_mode=True,
    ), tensors


def save_lora(
    model: PeftModel, folder: str | Path, adapters: Sequence[str] | None = None, layout: str | None = None
) -> LoraConfig:
    """Write [`lora_form`] to a folder that `PeftModel.from_pretrained` loads, and return its config.

    Raises:
        ValueError: See [`lora_form`]; nothing is written then.
    """
    config, tensors = lora_form(model, adapters, layout)
    config.target_modules = sorted(config.target_modules or ())  # a set, whose order differs from run to run
    config.save_pretrained(str(folder))
    save_file(tensors, Path(folder) / WEIGHTS_NAME, metadata={"format": "pt"})
    return config


def _row_factors(layer: TokenRowLayer, rows: dict[int, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """A LoRA on the embedding or the head that is nothing but these rows."""
    weight = plain_weight(layer.get_base_layer())
    change = torch.stack([row.detach().float() - weight[token_id].float() for token_id, row in rows.items()])
    where = torch.zeros(len(rows), len(weight), device=change.device)
    where[range(len(rows)), list(rows)] = 1.0
    return (where, change.T) if isinstance(layer, InputRowLayer) else (change, where.T)


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().float().cpu().contiguous()
