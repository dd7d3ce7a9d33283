"""Room for a further adapter beside others: its token on another spare row, its hidden units at other places.

Two erasures that were made apart on one base do not know of each other and may have chosen the same vocabulary row, or
some of the same hidden units. A config therefore names spare ones too, and what is taken moves when it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from peft.utils.other import get_pattern_key
from torch import nn

from .config import UniEraseConfig
from .gate import GateLayer
from .token_row import TokenRowLayer


def free_token(model: nn.Module, config: UniEraseConfig) -> UniEraseConfig:
    """The config with its token on the first of `config.spare_tokens` that no other adapter has, if its row is taken.

    A moved token is in a copy, because one config may have been given for several adapters. Where all are taken it
    stays: the two can then be used in turn, and the layers refuse to have both on.
    """
    layers = [module for module in model.modules() if isinstance(module, TokenRowLayer)]
    taken = {token_id for layer in layers for token_id in layer.unierase_token_id.values()}
    free = (spare for spare in config.spare_tokens if spare[0] not in taken)
    if config.token_id in taken and (spare := next(free, None)):
        return replace(config, token_id=spare[0], token=spare[1])
    return config


def free_units(model: nn.Module, config: UniEraseConfig) -> dict[str, dict[int, int]]:
    """For each edited module the features that move, and where to, because other adapters have them.

    A hidden unit is a column of the down-projection and one or more rows of what writes it, and moves as a whole. Where
    `config.spare_units` do not suffice all stay, as in `free_token`.
    """
    gates = {name: module for name, module in model.named_modules() if isinstance(module, GateLayer)}
    moves: dict[str, dict[int, int]] = {}
    for name, down in gates.items():
        units = _of(config.columns, name)
        beside = {other: gate for other, gate in gates.items() if _parent(other) == _parent(name)}
        taken = {place % down.in_features for gate in beside.values() for place in gate.places()}
        conflicts = [unit for unit in units if unit in taken]
        free = [unit for unit in _of(config.spare_units, name) if unit not in taken and unit not in units]
        if not conflicts or len(free) < len(conflicts):
            continue
        moved = dict(zip(conflicts, free, strict=False))
        moves[name] = moved
        for other in beside:
            rows = _of(config.rows, other)
            parts = [(row, row % down.in_features) for row in rows]
            if rows:
                moves[other] = {row: row - unit + moved[unit] for row, unit in parts if unit in moved}
    return moves


def _of(pattern: Mapping[str, Any], name: str) -> list[int]:
    return pattern.get(get_pattern_key(pattern, name)) or []


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
