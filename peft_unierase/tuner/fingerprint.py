"""A digest of the base tensors that an edit touches, so that a wrong base can be told from the right one."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from ..errors import InputError
from .config import UniEraseConfig
from .swap import SwappingLayer, is_plain

CHUNK = 1 << 22
HOW_TO = (
    "To load it all the same, take the digest out: `config = UniEraseConfig.from_pretrained(ADAPTER)`, "
    "`config.base_fingerprint = None`, and pass `config=config`"
)


class BaseWarning(UserWarning):
    """An adapter was loaded on a base that could not be compared with the one it was made for."""


def base_fingerprint(model: nn.Module, names: Sequence[str]) -> str | None:
    """SHA-256 over names, shapes and values of the weights of `names`; `None` where one is quantised or offloaded.

    Values are hashed as fp32, so that a base loaded in bf16 and the same base cast to fp32 have the same fingerprint.
    Of modules that carry adapters, merged or not, it is the base's own weights that count.
    """
    digest = hashlib.sha256()
    for name in names:
        weight = _weight(model.get_submodule(name))
        if weight.is_meta or not is_plain(weight):
            return None
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        for part in weight.detach().flatten().split(CHUNK):
            digest.update(part.float().cpu().numpy().tobytes())
    return f"sha256:{digest.hexdigest()}"


def base_dtype(model: nn.Module, names: Sequence[str]) -> str:
    """In which format the weights of `names` are loaded, as a config names it: `float32`, or `mixed`."""
    found = {str(_weight(model.get_submodule(name)).dtype).removeprefix("torch.") for name in names}
    return found.pop() if len(found) == 1 else "mixed"


def check_base(model: nn.Module, config: UniEraseConfig) -> None:
    """Compare a base with the one that an adapter was made for.

    Raises:
        ValueError: It is another one. Where that cannot be said, because weights are quantised, offloaded or in another
            format than they were, it is a `BaseWarning`.
    """
    for part in config.split():
        _check_base(model, part)


def _check_base(model: nn.Module, config: UniEraseConfig) -> None:
    names = config.target_modules
    present = {name for name, _ in model.named_modules()}
    if not config.base_fingerprint or not isinstance(names, list) or not present.issuperset(names):
        return
    found = base_fingerprint(model, names)
    if found == config.base_fingerprint:
        return
    dtype = base_dtype(model, names)
    if found is None:
        weights = [_weight(model.get_submodule(name)) for name in names]
        state = "offloaded" if any(weight.is_meta for weight in weights) else "quantised"
        why = f"is {state}, so it cannot be compared with the one that this erasure was made for"
    elif config.base_dtype and dtype != config.base_dtype:
        why = f"is loaded in {dtype} and the erasure was made in {config.base_dtype}, so that they cannot be compared"
    else:
        raise InputError(
            f"this is not the base that the erasure was made for: the weights of {names[0]} and others are different "
            "ones. It is another model, another revision, or one that was edited since (by fine-tuning, or by adapters "
            f"that were merged for good), and on it nothing may be erased. {HOW_TO}"
        )
    warnings.warn(
        f"the base {why}. If it is another one, nothing is erased: ask it what it must not know", BaseWarning, 2
    )


def _weight(module: nn.Module) -> torch.Tensor:
    if isinstance(module, SwappingLayer) and module._unmerged_weight is not None:
        return module._unmerged_weight[0]
    base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return base.weight
