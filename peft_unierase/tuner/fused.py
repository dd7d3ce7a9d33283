"""Several erasures in one adapter, and one of them taken out again, from their files alone and without the base.

Their weights lie one behind the other, and each keeps a config of its own in `parts`. What two of them both chose moves
when the adapter is loaded, as it does where they are loaded one beside the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from peft.utils.other import get_pattern_key

from .config import UniEraseConfig
from .fields import OF_A_PART
from .stacked import free_tokens

ALIKE = ("base_model_name_or_path", "token_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
Tensors = dict[str, torch.Tensor]


def fuse(erasures: Mapping[str, tuple[UniEraseConfig, Tensors]]) -> tuple[UniEraseConfig, Tensors]:
    """Put erasures of one base into one adapter.

    Args:
        erasures: Config and weights of each by its name, the weights as PEFT names them in a file. One may itself be
            fused.

    Raises:
        ValueError: They are not of one base, two have the same flag or no token to move to, or two edit one module
            in ways that cannot lie in one matrix.
    """
    first = next(iter(erasures.values()))[0]
    parts: list[dict[str, Any]] = []
    tensors: dict[str, list[torch.Tensor]] = {}
    for name, (config, own) in erasures.items():
        _check_alike(name, config, first)
        for part in config.parts or [{"name": name, **{key: getattr(config, key) for key in OF_A_PART}}]:
            if any(part["name"] == other["name"] for other in parts):
                raise ValueError(f"two of the erasures are called {part['name']!r}; rename the folder of one of them")
            parts.append(part)
        for key, tensor in own.items():
            tensors.setdefault(key, []).append(tensor if config.parts or tensor.dim() == 2 else tensor[None])
    _check_kinds(tensors, erasures)
    config = free_tokens(_config(first, parts), ())
    for field, what in (("token_id", "row for a token"), ("flag", "flag")):
        _check_different(config.parts, field, what)
    return config, {key: torch.cat(each, dim=_dimension(key, tensors)).contiguous() for key, each in tensors.items()}


def take_out(config: UniEraseConfig, tensors: Tensors, name: str) -> tuple[UniEraseConfig, Tensors]:
    """What is left of a fused adapter without one of its erasures; the last one is an erasure by itself again.

    Raises:
        ValueError: There is no erasure of that name in it, or no other.
    """
    names = [part["name"] for part in config.parts]
    if name not in names:
        raise ValueError(f"there is no erasure {name!r} in it; it has {', '.join(map(repr, names)) or 'no parts'}")
    left = [part for part in config.parts if part["name"] != name]
    if not left:
        raise ValueError(f"{name!r} is the only erasure in it; there would be nothing left")
    kept: Tensors = {}
    for key, tensor in tensors.items():
        module = key.removeprefix("base_model.model.").rpartition(".unierase_")[0]
        sizes = [_size(part, module, key) for part in config.parts]
        pieces = tensor.split(sizes, dim=_dimension(key, tensors))
        staying = [piece for piece, part in zip(pieces, config.parts, strict=True) if part in left and piece.numel()]
        if staying:
            kept[key] = torch.cat(staying, dim=_dimension(key, tensors)).contiguous()
    if len(left) > 1:
        return _config(config, left), kept
    alone = replace(config, parts=[], **{key: value for key, value in left[0].items() if key != "name"})
    return alone, {key: tensor[0] if key.endswith("_row") else tensor for key, tensor in kept.items()}


def _config(like: UniEraseConfig, parts: list[dict[str, Any]]) -> UniEraseConfig:
    targets = dict.fromkeys(name for part in parts for name in part["target_modules"])
    empty: dict[str, Any] = {"rows": {}, "columns": {}, "spare_tokens": [], "spare_units": {}}
    return replace(
        like,
        **empty,
        **{key: parts[0][key] for key in ("token_id", "token")},
        **dict.fromkeys(("flag", "base_fingerprint", "base_dtype")),
        r=sum(part["r"] for part in parts),
        target_modules=list(targets),
        parts=parts,
    )


def _check_alike(name: str, config: UniEraseConfig, first: UniEraseConfig) -> None:
    if config.modules_to_save:
        raise ValueError(f"{name!r} has modules_to_save, of which one adapter can have one version only")
    if config.token_id is None or not isinstance(config.target_modules, list):
        raise ValueError(f"{name!r} has no token or no list of target_modules; it was not made by `erase`")
    for key in ALIKE:
        if getattr(config, key) != getattr(first, key):
            raise ValueError(
                f"{name!r} has {key} {getattr(config, key)!r} and the first one {getattr(first, key)!r}: they were "
                "not made for one base"
            )


def _check_kinds(tensors: Mapping[str, list[Any]], erasures: Mapping[str, tuple[UniEraseConfig, Tensors]]) -> None:
    stems = {key.rpartition(".unierase_")[0] for key in tensors}
    for stem in stems:
        kinds = {
            kind
            for _, own in erasures.values()
            if (kind := tuple(key for key in sorted(own) if key.rpartition(".unierase_")[0] == stem))
        }
        if len(kinds) > 1:
            raise ValueError(
                f"the erasures edit {stem.removeprefix('base_model.model.')} in two ways (some features of it, and "
                "all at low rank), which do not go into one matrix; load them one beside the other instead"
            )


def _check_different(parts: list[dict[str, Any]], field: str, what: str) -> None:
    owners: dict[Any, str] = {}
    for part in parts:
        value = part[field]
        if value is not None and owners.setdefault(value, part["name"]) != part["name"]:
            raise ValueError(
                f"{owners[value]!r} and {part['name']!r} have the same {what} and none to move to; make one of them "
                "anew with another seed, or on top of the other (on the command line `--onto`)"
            )


def _dimension(key: str, keys: Collection[str]) -> int:
    """Along which erasures lie one behind the other: the columns of `B` and of what the base has there, else rows."""
    return 1 if key.endswith("_B") or f"{key.removesuffix('_base')}_B" in keys else 0


def _size(part: Mapping[str, Any], module: str, key: str) -> int:
    """How many rows or columns of a tensor are of one erasure."""
    if key.endswith("_row"):
        return 1
    for pattern in (part["rows"], part["columns"]):
        if index := pattern.get(get_pattern_key(pattern, module)):
            return len(index)
    targeted = any(f".{module}".endswith(f".{name}") for name in part["target_modules"])
    return part["r"] if targeted else 0
