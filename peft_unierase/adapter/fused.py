"""Several erasures in one adapter, and one of them taken out again, from their files alone and without the base.

Factors are concatenated along the rank, which adds the edits up, and rows are stacked. Each erasure keeps a config of
its own in `fused`. A token whose row another one has moves, as it does if they are loaded one beside the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from ..errors import InputError
from .config import OF_A_PART, AdapterConfig
from .stacked import free_tokens

ALIKE = ("base_model_name_or_path", "token_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
Tensors = dict[str, torch.Tensor]


def fuse(erasures: Mapping[str, tuple[AdapterConfig, Tensors]]) -> tuple[AdapterConfig, Tensors]:
    """Put erasures of one base into one adapter.

    Args:
        erasures: Config and weights of each by its name, the weights as PEFT names them in a file. One may itself be
            fused.

    Raises:
        ValueError: They are not of one base, or two have one row for their tokens and none to move to.
    """
    first = next(iter(erasures.values()))[0]
    parts: list[dict[str, Any]] = []
    tensors: dict[str, list[torch.Tensor]] = {}
    for name, (config, own) in erasures.items():
        _check_alike(name, config, first)
        for part in config.fused or [{"name": name, **{key: getattr(config, key) for key in OF_A_PART}}]:
            if any(part["name"] == other["name"] for other in parts):
                raise InputError(f"two of the erasures are called {part['name']!r}; rename the folder of one of them")
            parts.append(part)
        for key, tensor in own.items():
            tensors.setdefault(key, []).append(tensor if config.fused or tensor.dim() == 2 else tensor[None])
    config = free_tokens(_config(first, parts), ())
    _check_tokens(config.fused, "token_id", "row", "with another seed, or ")
    _check_tokens(config.fused, "token", "text")
    return config, {key: torch.cat(each, dim=_dimension(key)).contiguous() for key, each in tensors.items()}


def take_out(config: AdapterConfig, tensors: Tensors, name: str) -> tuple[AdapterConfig, Tensors]:
    """What is left of a fused adapter without one of its erasures; the last one is an erasure by itself again.

    Raises:
        ValueError: There is no erasure of that name in it, or no other.
    """
    names = [part["name"] for part in config.fused]
    if name not in names:
        raise InputError(f"there is no erasure {name!r} in it; it has {', '.join(map(repr, names)) or 'none'}")
    stays = [other != name for other in names]
    left = [part for part in config.fused if part["name"] != name]
    if not left:
        raise InputError(f"{name!r} is the only erasure in it; there would be nothing left")
    kept: Tensors = {}
    for key, tensor in tensors.items():
        module = key.removeprefix("base_model.model.").rpartition(".unierase_")[0]
        sizes = [1 if key.endswith("_row") else _rank(part, module) for part in config.split()]
        pieces = zip(tensor.split(sizes, dim=_dimension(key)), stays, strict=True)
        if staying := [piece for piece, stay in pieces if stay and piece.numel()]:
            kept[key] = torch.cat(staying, dim=_dimension(key)).contiguous()
    if len(left) > 1:
        return _config(config, left), kept
    alone = replace(config, fused=[], **{key: value for key, value in left[0].items() if key != "name"})
    return alone, {key: tensor[0] if key.endswith("_row") else tensor for key, tensor in kept.items()}


def _config(like: AdapterConfig, parts: list[dict[str, Any]]) -> AdapterConfig:
    targets = dict.fromkeys(name for part in parts for name in part["target_modules"])
    return replace(
        like,
        **{key: parts[0][key] for key in ("token_id", "token")},
        r=sum(part["r"] for part in parts),
        rank_pattern={},
        target_modules=list(targets),
        spare_tokens=[],
        base_fingerprint=None,
        base_dtype=None,
        fused=parts,
    )


def _check_alike(name: str, config: AdapterConfig, first: AdapterConfig) -> None:
    if config.modules_to_save:
        raise InputError(f"{name!r} has modules_to_save, of which one adapter can have one version only")
    if config.token_id is None or not isinstance(config.target_modules, list):
        raise InputError(f"{name!r} has no token or no list of target_modules; it was not made by `erase`")
    for key in ALIKE:
        if getattr(config, key) != getattr(first, key):
            raise InputError(
                f"{name!r} has {key} {getattr(config, key)!r} and the first one {getattr(first, key)!r}: they were "
                "not made for one base"
            )


def _check_tokens(parts: list[dict[str, Any]], key: str, what: str, otherwise: str = "") -> None:
    owners: dict[Any, str] = {}
    for part in parts:
        if owners.setdefault(part[key], part["name"]) != part["name"]:
            raise InputError(
                f"{owners[part[key]]!r} and {part['name']!r} have the same {what} for a token and none to move to: "
                f"{part[key]}; make one of them anew {otherwise}on top of the other (on the command line `--onto`)"
            )


def _dimension(key: str) -> int:
    """Along which erasures are concatenated: the columns of `B`, else rows."""
    return 1 if key.endswith("_B") else 0


def _rank(config: AdapterConfig, module: str) -> int:
    """Rank of one erasure's edit of a module; 0 if it does not edit it."""
    targeted = any(f".{module}".endswith(f".{name}") for name in config.target_modules or ())
    return config.rank_of(module) if targeted else 0
