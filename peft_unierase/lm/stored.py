"""Weights of a base as they are stored, read from its files by name, without any more of the base being loaded."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ..storage.plain import plain, read_json
from ..storage.schema import Shards
from ..storage.values import checked

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def stored_weights(model: nn.Module, names: Sequence[str]) -> list[torch.Tensor] | None:
    """The weights of modules in the files that a model was loaded from; nothing is downloaded.

    Args:
        model: A transformers model.
        names: Of the modules.

    Returns:
        One tensor a name, in the dtype that it is stored in and mapped from the file. `None` where the model was not
        loaded from safetensors files on this machine, or where one of the names is not found in them.
    """
    try:
        files = _files(model)
        places = [_place(files, f"{name}.weight") for name in names]
        found = []
        for place in places:
            if place is None:
                return None
            with safe_open(plain(place[0]), framework="pt") as opened:
                found.append(opened.get_tensor(place[1]))
        return found
    except (OSError, ValueError, SafetensorError):
        return None


def _files(model: Any) -> dict[str, Path]:
    """Names of all tensors, each with the file that holds it."""
    config = getattr(model, "config", None)
    name, commit = getattr(config, "_name_or_path", "") or "", getattr(config, "_commit_hash", None)
    if (index := _file(name, INDEX, commit)) is not None:
        listed = checked(Shards, read_json(index), f"{index} is no index of weights").weight_map
        files = {file: _file(name, file, commit) for file in set(listed.values())}
        return {key: path for key, file in listed.items() if (path := files[file]) is not None}
    if (whole := _file(name, WHOLE, commit)) is not None:
        with safe_open(plain(whole), framework="pt") as opened:
            return dict.fromkeys(opened.keys(), whole)
    return {}


def _file(name: str, file: str, commit: str | None) -> Path | None:
    if not name:
        return None
    if Path(name).is_dir():
        return path if (path := Path(name) / file).is_file() else None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, file, revision=commit)
    except HFValidationError:
        return None
    return Path(found) if isinstance(found, str) else None


def _place(files: dict[str, Path], wanted: str) -> tuple[Path, str] | None:
    """Where a tensor is. A file may leave out the first parts of its name, or have more of them."""
    if wanted in files:
        return files[wanted], wanted
    alike = [key for key in files if _ends(wanted, key) or _ends(key, wanted)]
    return (files[alike[0]], alike[0]) if len(alike) == 1 else None


def _ends(longer: str, shorter: str) -> bool:
    return longer.endswith(f".{shorter}")


def equal_when_loaded(stored: Iterable[torch.Tensor], loaded: Iterable[torch.Tensor]) -> bool:
    """Whether weights are those that were stored, in the dtype in which they were loaded."""
    return all(
        one.shape == other.shape and torch.equal(one.to(other.dtype), other.cpu())
        for one, other in zip(stored, loaded, strict=True)
    )
