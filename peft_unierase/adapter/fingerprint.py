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
from ..lm.stored import equal_when_loaded, stored_weights
from ..lm.weights import MERGEABLE_DTYPES, hash_tensors, is_plain
from .config import AdapterConfig
from .swap import SwappingLayer

HOW_TO = (
    "To load it all the same, take the digest out: `config = UniEraseConfig.from_pretrained(ADAPTER)`, "
    "`config.base_fingerprint = None`, and pass `config=config`"
)
TRUST = "To load it all the same, use `peft_unierase.load` with trust=True (on the command line --trust)"


class BaseWarning(UserWarning):
    """An adapter was loaded on a base that could not be compared with the one it was made for."""


def base_fingerprint(model: nn.Module, names: Sequence[str]) -> str | None:
    """SHA-256 over names, shapes and values of the weights of `names`; `None` where one is quantised or offloaded.

    Values are hashed as fp32, so that a base loaded in bf16 and the same base cast to fp32 have the same fingerprint.
    Of modules that carry adapters, merged or not, it is the base's own weights that count.
    """
    weights = [_weight(model.get_submodule(name)) for name in names]
    return _digest(names, weights) if all(map(_is_there, weights)) else None


def _is_there(weight: torch.Tensor) -> bool:
    return not weight.is_meta and is_plain(weight)


def _digest(names: Sequence[str], weights: Sequence[torch.Tensor], made: torch.dtype | None = None) -> str:
    """Of weights as they are, or as they would be had they been loaded in the dtype `made`."""
    digest = hashlib.sha256()
    named = ((f"{name}{tuple(weight.shape)}", weight) for name, weight in zip(names, weights, strict=True))
    hash_tensors(digest, named, lambda part: part.to(made or part.dtype).float())
    return f"sha256:{digest.hexdigest()}"


def base_dtype(model: nn.Module, names: Sequence[str]) -> str:
    """In which format the weights of `names` are loaded, as a config names it: `float32`, or `mixed`."""
    found = {str(_weight(model.get_submodule(name)).dtype).removeprefix("torch.") for name in names}
    return found.pop() if len(found) == 1 else "mixed"


def check_base(model: nn.Module, config: AdapterConfig) -> None:
    """Compare a base with the one that an adapter was made for.

    Where the base is loaded in another format than it was then, is quantised or offloaded, its files are asked.

    Raises:
        ValueError: It is another one, or that cannot be said. Of a config that is trusted the latter is a
            `BaseWarning`.
    """
    for part in config.split():
        if part.base_fingerprint:
            _check_base(model, part, part.base_fingerprint)


def _check_base(model: nn.Module, config: AdapterConfig, fingerprint: str) -> None:
    names = config.target_modules
    if not isinstance(names, list):
        return _cannot("the erasure does not name its modules one by one, so that no base can be compared", config)
    if missing := [name for name in names if not has_module(model, name)]:
        raise InputError(f"this is not the base that the erasure was made for: it has no {missing[0]}. {HOW_TO}")
    weights = [_weight(model.get_submodule(name)) for name in names]
    whole = all(map(_is_there, weights))
    if whole and _digest(names, weights) == fingerprint:
        return None
    dtype, made = base_dtype(model, names), _dtype(config.base_dtype)
    if whole and config.base_dtype in (None, dtype):
        return _refuse(names)
    if whole and made is not None and dtype == "float32":
        # What was loaded in full is what it would have been in another format, once it is rounded to that.
        return None if _digest(names, weights, made) == fingerprint else _refuse(names)
    stored = stored_weights(model, names)
    if stored is None or made is None or any(weight.dtype not in MERGEABLE_DTYPES for weight in stored):
        state = "offloaded" if any(weight.is_meta for weight in weights) else "quantised"
        how = f"loaded in {dtype} and the erasure was made in {config.base_dtype}" if whole else state
        return _cannot(f"the base is {how}, and its files were not found, so that it cannot be compared", config)
    if (whole and not equal_when_loaded(stored, weights)) or _digest(names, stored, made) != fingerprint:
        return _refuse(names)
    return None


def _refuse(names: Sequence[str]) -> None:
    raise InputError(
        f"this is not the base that the erasure was made for: the weights of {names[0]} and others are different "
        "ones. It is another model, another revision, or one that was edited since (by fine-tuning, or by adapters "
        f"that were merged for good), and on it nothing may be erased. {HOW_TO}"
    )


def _cannot(why: str, config: AdapterConfig) -> None:
    told = f"{why} with the one that it was made for. If it is another one, nothing is erased"
    if not config.trusted:
        raise InputError(f"{told}. {TRUST}")
    warnings.warn(f"{told}: ask it what it must not know", BaseWarning, 3)


def _dtype(name: str | None) -> torch.dtype | None:
    found = getattr(torch, name, None) if name else None
    return found if found in MERGEABLE_DTYPES else None


def has_module(model: nn.Module, name: str) -> bool:
    """Whether a model has a module of that name."""
    try:
        model.get_submodule(name)
    except AttributeError:
        return False
    return True


def _weight(module: nn.Module) -> torch.Tensor:
    if isinstance(module, SwappingLayer) and module._unmerged_weight is not None:
        return module._unmerged_weight[0]
    base: Any = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return base.weight
