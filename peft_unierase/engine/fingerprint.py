"""A digest of the base tensors that an edit touches, so that a wrong base can be told from the right one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

CHUNK = 1 << 22


def base_fingerprint(model: nn.Module, names: Sequence[str]) -> str | None:
    """SHA-256 over names, shapes and values of the weights of `names`; `None` where one is quantised.

    Values are hashed as fp32, so that a base loaded in bf16 and the same base cast to fp32 have the same fingerprint.
    """
    digest = hashlib.sha256()
    for name in names:
        weight = model.get_submodule(name).weight
        if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
            return None
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        for part in weight.detach().flatten().split(CHUNK):
            digest.update(part.float().cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"
