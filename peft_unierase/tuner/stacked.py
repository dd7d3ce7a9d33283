"""Room for a further adapter beside others: its token on another spare row, its hidden units at other places.

Two erasures that were made apart on one base do not know of each other and may have chosen the same vocabulary row, or
some of the same hidden units. A config therefore names spare ones too, and what is taken moves when it is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.other import get_pattern_key
from torch import nn

from .config import UniEraseConfig
from .gate import GateLayer
from .token_row import TokenRowLayer

Features = dict[str, dict[str, list[int]]]


def free_tokens(config: UniEraseConfig, taken: Collection[int]) -> UniEraseConfig:
    """The config with its token on the first of `spare_tokens` that is not taken, if its row is.

    The erasures of a fused one move one by one. What has moved is in a copy, because one config may have been given for
    several adapters. Where all are taken it stays: the two can then be used in turn, and the layers refuse to have both
    on.
    """
    now, tokens = set(taken), []
    for part in config.split():
        spare = next((spare for spare in part.spare_tokens if spare[0] not in now), None)
        token_id, token = spare if spare and part.token_id in now else (part.token_id, part.token)
        now.add(token_id)
        tokens.append({"token_id": token_id, "token": token})
    if config.parts:
        parts = [{**part, **token} for part, token in zip(config.parts, tokens, strict=True)]
        return replace(config, **tokens[0], parts=parts)
    return config if config.token_id == tokens[0]["token_id"] else replace(config, **tokens[0])


def taken_tokens(model: nn.Module) -> set[int]:
    """The rows that the model's adapters have for their tokens."""
    layers = [module for module in model.modules() if isinstance(module, TokenRowLayer)]
    return {token_id for layer in layers for ids in layer.unierase_token_ids.values() for token_id in ids}


def features(model: nn.Module, config: UniEraseConfig) -> Features:
    """For each module of which some features alone are edited, what a `GateLayer` is told: `rows` or `columns`, and
    `moved` where another adapter, or an erasure fused into the same one, has some of them.

    A hidden unit is a column of the down-projection and one or more rows of what writes it, and moves as a whole. Where
    `config.spare_units` do not suffice all stay, as in `free_tokens`.
    """
    modules = dict(model.named_modules())
    taken = {name: set(module.places()) for name, module in modules.items() if isinstance(module, GateLayer)}
    told: Features = {}
    for part in config.split():
        own = {name: index for name in modules if (index := _of(part.rows, name) or _of(part.columns, name))}
        places = dict(own)
        for name in own:
            if units := _of(part.columns, name):
                width = _width(modules[name])
                there = {place % width for other, index in taken.items() if _beside(other, name) for place in index}
                moves = _moves(units, there, _of(part.spare_units, name))
                for other in filter(partial(_beside, name), own):
                    places[other] = [row - row % width + moves.get(row % width, row % width) for row in own[other]]
        for name, index in own.items():
            taken.setdefault(name, set()).update(places[name])
            layer = told.setdefault(name, {"rows": [], "columns": [], "moved": []})
            layer["rows" if _of(part.rows, name) else "columns"] += index
            layer["moved"] += places[name]
    for name, layer in told.items():
        if config.parts and len(set(layer["moved"])) < len(layer["moved"]):
            raise ValueError(
                f"erasures that were fused into one have the same features of {name} and there are no spare ones to "
                "move to; take one of them out, and make it anew on top of the others"
            )
        if layer["moved"] == layer["rows"] + layer["columns"]:
            layer["moved"] = []
    return told


def _moves(units: Sequence[int], there: Collection[int], spare: Sequence[int]) -> dict[int, int]:
    """Where those of the units go that are there already; nowhere if there is no room for all of them."""
    conflicts = [unit for unit in units if unit in there]
    free = [unit for unit in spare if unit not in there and unit not in units]
    return dict(zip(conflicts, free, strict=False)) if len(free) >= len(conflicts) else {}


def _of(pattern: Mapping[str, Any], name: str) -> list[int]:
    return pattern.get(get_pattern_key(pattern, name)) or []


def _beside(name: str, other: str) -> bool:
    """Whether two modules are of one MLP."""
    return name.rpartition(".")[0] == other.rpartition(".")[0]


def _width(module: nn.Module) -> int:
    return _get_in_out_features(module.get_base_layer() if isinstance(module, BaseTunerLayer) else module)[0]
