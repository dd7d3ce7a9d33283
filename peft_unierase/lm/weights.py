"""Weights of a model as they are stored, and whether they can be read and written as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

MERGEABLE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
UNITS_AT_ONCE = 256
VALUES_AT_ONCE = 1 << 22


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


def as_bits(values: torch.Tensor) -> torch.Tensor:
    """Values as whole numbers, so that what is no number can be compared too, and every format be hashed."""
    return values.contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[values.itemsize])


def hash_tensors(
    digest: Any, named: Iterable[tuple[str, torch.Tensor]], read: Callable[[torch.Tensor], torch.Tensor] = as_bits
) -> None:
    """Add tensors to a digest of hashlib, a part at a time.

    Args:
        digest: What they are added to.
        named: What is added before each, its name and what else counts, and the tensor.
        read: What is added of a part; by default its bits.
    """
    for label, tensor in named:
        digest.update(label.encode())
        for part in tensor.detach().flatten().split(VALUES_AT_ONCE):
            digest.update(read(part).cpu().numpy().tobytes())
