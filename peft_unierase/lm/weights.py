"""Weights of a model as they are stored, and whether they can be read and written as they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

MERGEABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
UNITS_AT_ONCE = 256


def is_plain(weight: torch.Tensor) -> bool:
    """Whether a weight is stored as it is, and not quantised, also where that is done behind a float's face."""
    # A parameter whose data is of another kind is of that kind too; `data` takes time, and this is asked at each step.
    return weight.dtype in MERGEABLE_DTYPES and (type(weight) is nn.Parameter or type(weight.data) is torch.Tensor)


@torch.no_grad()
def plain_weight(module: Any) -> torch.Tensor:
    """The weight of a projection or an embedding in the shape that it stands for, detached.

    A quantised projection is asked what it does with unit vectors: every quantiser stores in a way of its own, and
    bitsandbytes leaves its layers unusable on a CPU when they are dequantised after a first forward pass.
    """
    weight = module.weight.detach()
    if is_plain(weight):
        return weight
    if isinstance(module, nn.Embedding):
        return nn.functional.embedding(torch.arange(module.num_embeddings, device=weight.device), weight)
    dtype = weight.dtype if weight.is_floating_point() else torch.float32
    units = torch.eye(module.in_features, dtype=dtype, device=weight.device)
    offset = module(torch.zeros_like(units[:1]))
    return torch.cat([module(part) - offset for part in units.split(UNITS_AT_ONCE)]).T
