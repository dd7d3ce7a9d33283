"""The way back from a merge: what the base had where merging changed it, and a digest of the base to prove it by.

Of a matrix with a token's row it is that row, of an edited projection the whole matrix. What is kept brings the erased
knowledge back and must not go where the merged model goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..errors import InputError
from ..lm.weights import as_bits, hash_tensors
from ..storage.plain import parse_json, plain
from ..storage.schema import MergedModel, UndoHeader
from ..storage.values import checked
from .swap import SwappingLayer

OTHER_MODEL = "it is the way back of another model, or was edited"
ROWS = "#"  # behind a name: which rows of that matrix are kept
MERGED_TOKENS = "unierase_tokens"  # in the config of a model that erasures were merged into: the tokens of those


def merged_tokens(model: Any) -> list[tuple[int, str]]:
    """Ids and texts of the tokens of erasures that were merged into a model, as its config says.

    Raises:
        InputError: It says something else there.
    """
    told = {MERGED_TOKENS: getattr(model.config, MERGED_TOKENS, None)}
    what = f"{MERGED_TOKENS} in the config of the model is no list of [id, mark] pairs; correct it, or take it out"
    return [(int(pair[0]), str(pair[1])) for pair in checked(MergedModel, told, what).unierase_tokens or ()]


class Before:
    """The base's weights as they are before a merge; merging puts new ones in their place, so nothing is copied.

    Args:
        base: A base with adapters on, not merged.
    """

    def __init__(self, base: nn.Module) -> None:
        self.weights: dict[str, torch.Tensor] = {}
        for name, layer in base.named_modules():
            if isinstance(layer, SwappingLayer):
                for key, parameter in layer.get_base_layer().named_parameters():
                    self.weights[f"{name}.{key}"] = parameter.detach()
        self.tied = bool(getattr(base.config, "tie_word_embeddings", False))
        self.tokens = [list(pair) for pair in merged_tokens(base)] or None
        self.digest = model_digest(base)

    def save(self, merged: nn.Module, file: Path, **told: str) -> None:
        """Write what `merged` has otherwise.

        Args:
            merged: The model after `merge_and_unload`.
            file: Where to, a safetensors file.
            **told: Further facts for its header.
        """
        tensors: dict[str, torch.Tensor] = {}
        for name, old in self.weights.items():
            new = merged.get_parameter(name).detach()
            if torch.equal(as_bits(old), as_bits(new)):
                continue
            rows = (as_bits(old) != as_bits(new)).flatten(1).any(dim=1).nonzero().flatten()
            if len(rows) < len(old):
                tensors[name + ROWS] = rows.cpu()
                old = old[rows]
            tensors[name] = old.cpu().clone()
        header = {"tied": json.dumps(self.tied), "digest": self.digest, **told}
        header["tokens"] = json.dumps(self.tokens)
        save_file(tensors, file, metadata=header)


def read_header(file: Path) -> dict[str, Any]:
    """The header of such a file.

    Raises:
        InputError: It is none.
    """
    try:
        with safe_open(plain(file), "pt") as opened:
            header = opened.metadata() or {}
        told = {**header, **{key: parse_json(header[key]) for key in ("tied", "tokens") if key in header}}
        checked(UndoHeader, told, "its header is none")
        return told
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{file} holds no way back from a merge: {error}") from error


def put_back(merged: Any, file: Path) -> None:
    """Make a merged model the base again, in place.

    Args:
        merged: The `PreTrainedModel`.
        file: What [`Before.save`] wrote.

    Raises:
        InputError: The file does not fit the model, which is as it was then; or what came of it is not the base: the
            model is not the one that was merged, or one of both was changed since.
    """
    header = read_header(file)
    ends = [each() for each in (merged.get_input_embeddings, merged.get_output_embeddings)]
    if header["tied"] and (None in ends or ends[0].weight.shape != ends[1].weight.shape):
        raise InputError(f"{file} is of a model with tied embeddings, and this one cannot tie them; {OTHER_MODEL}")
    try:
        with safe_open(plain(file), "pt") as opened, torch.no_grad():
            for parameter, rows, old in _fitting(merged, opened, file):
                if rows is None:
                    parameter.copy_(old)
                else:
                    parameter.index_copy_(0, rows.to(parameter.device), old.to(parameter))
    except SafetensorError as error:
        raise InputError(f"{file} holds no way back from a merge: {error}") from error
    if header["tied"]:
        merged.config.tie_word_embeddings = True
        merged.tie_weights()
    if header["tokens"] is not None:
        setattr(merged.config, MERGED_TOKENS, header["tokens"])
    elif hasattr(merged.config, MERGED_TOKENS):
        delattr(merged.config, MERGED_TOKENS)
    found = model_digest(merged)
    if found != header["digest"]:
        raise InputError(
            f"what came of it is not the base: its digest is {found}, and the base had {header['digest']}; the model "
            "is not the one that was merged, or it or the way back was changed since"
        )


def _fitting(
    merged: nn.Module, opened: Any, file: Path
) -> list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]]:
    """Parameters of a model, each with the rows that a file has of it, `None` for all, and their values.

    Raises:
        InputError: The model has no such parameter, or one of another shape or dtype.
    """
    parameters = dict(merged.named_parameters())
    stored = set(opened.keys())
    shapes = {name: opened.get_slice(name).get_shape() for name in stored}
    for name in sorted(stored):
        matrix = name.removesuffix(ROWS)
        parameter = parameters.get(matrix)
        if parameter is None or matrix not in stored:
            raise InputError(f"{file} holds {matrix!r}, which the model does not have; {OTHER_MODEL}")
        wanted = list(parameter.shape)
        if matrix + ROWS in stored:
            wanted[:1] = shapes[matrix + ROWS]
        if (len(shapes[name]) != 1) if name != matrix else (shapes[name] != wanted or wanted[0] > len(parameter)):
            raise InputError(
                f"{file} holds {name!r} of shape {shapes[name]}, and the model's is {list(parameter.shape)}; "
                f"{OTHER_MODEL}"
            )
    found: list[tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]] = []
    for matrix in sorted(name for name in stored if not name.endswith(ROWS)):
        parameter, old = parameters[matrix], opened.get_tensor(matrix)
        rows = opened.get_tensor(matrix + ROWS) if matrix + ROWS in stored else None
        if old.dtype != parameter.dtype:
            raise InputError(
                f"{file} holds {matrix!r} in {old.dtype}, and the model's is {parameter.dtype}; {OTHER_MODEL}"
            )
        if rows is not None and not (
            rows.dtype == torch.int64 and len(rows.unique()) == len(rows) and _between(rows, len(parameter))
        ):
            raise InputError(f"{file} names rows of {matrix!r} that the model does not have; {OTHER_MODEL}")
        found.append((parameter, rows, old))
    return found


def _between(rows: torch.Tensor, count: int) -> bool:
    return not len(rows) or (int(rows.min()) >= 0 and int(rows.max()) < count)


def model_digest(model: nn.Module) -> str:
    """SHA-256 over names, formats and values of all weights but those of adapters."""
    digest = hashlib.sha256()
    named = sorted(_named(model), key=lambda pair: pair[0])
    hash_tensors(digest, ((f"{name} {each.dtype} {tuple(each.shape)}\n", each) for name, each in named))
    return f"sha256:{digest.hexdigest()}"


def _named(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, parameter in model.named_parameters():
        if ".unierase_" not in name:
            yield name.replace(".base_layer.", "."), parameter
