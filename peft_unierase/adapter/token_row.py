"""[UNL]'s rows: one row of the input embedding and one row of the output head, beside the base's own matrices.

No matrix is copied, live or saved: the embedding layer replaces the vectors of one id, the head layer one logit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn

from ..errors import InputError
from ..lm.structure import find_token_modules
from ..lm.weights import is_plain
from .config import AdapterConfig
from .swap import SwappingLayer


def check_token_row(module: Any, token_id: int | None) -> int:
    """`token_id`, if an embedding or a head, quantised or not, has that row.

    Raises:
        ValueError: It has not.
    """
    rows = module.num_embeddings if isinstance(module, nn.Embedding) else module.out_features
    if token_id is None or token_id >= rows:
        raise InputError(
            f"token_id {token_id} is outside the vocabulary of the base, which has {rows} rows: the adapter was made "
            "for another base, or for this one after its vocabulary had been resized"
        )
    return token_id


class TokenRowLayer(nn.Module, SwappingLayer):
    """What the two row layers share: a row `(d,)` and the id it stands on, per adapter; fused ones have `(n, d)`.

    The ids belong to the layer and not to the weights, so that an adapter can be moved to another spare row.

    Args:
        base_layer: The embedding or the head.
        adapter_name: First adapter.
        config: Its configuration, with `token_id` set.
    """

    adapter_layer_names = ("unierase_row",)
    other_param_names = ("unierase_token_ids",)

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig) -> None:
        super().__init__()
        SwappingLayer.__init__(self, base_layer)
        self.unierase_row = nn.ParameterDict({})
        self.unierase_token_ids: dict[str, list[int]] = {}
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config)

    def update_layer(self, adapter_name: str, config: AdapterConfig) -> None:
        """Add an adapter whose row starts as a copy of the base's own (or at random, for tests).

        Where that is quantised or offloaded it starts at zero.

        Raises:
            ValueError: The base has no row `config.token_id`.
        """
        base_layer: Any = self.get_base_layer()
        ids = [check_token_row(base_layer, part.token_id) for part in config.split()]
        weight = base_layer.weight.detach()
        if is_plain(weight) and not weight.is_meta:
            row = weight[ids].clone()
        else:
            row = torch.zeros(len(ids), self.out_features if isinstance(base_layer, nn.Embedding) else self.in_features)
        row = row if config.fused else row[0]
        drawn = not config.init_weights and not config.from_file
        self.unierase_token_ids[adapter_name] = ids
        self.unierase_row[adapter_name] = nn.Parameter(torch.randn_like(row) if drawn else row)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def rows(self, adapter_names: Iterable[str]) -> list[tuple[int, torch.Tensor]]:
        """The ids of adapters, each with its row `(d,)`."""
        return [
            pair
            for name in adapter_names
            for pair in zip(self.unierase_token_ids[name], _each(self.unierase_row[name]), strict=True)
        ]

    def check_together(self, adapter_names: list[str]) -> None:
        """Raise `ValueError` if two adapters stand on the same vocabulary row."""
        owners: dict[int, str] = {}
        for name in self.held_adapters(adapter_names):
            for token_id in self.unierase_token_ids[name]:
                other = owners.setdefault(token_id, name)
                if other != name:
                    raise InputError(
                        f"adapters {other!r} and {name!r} both use vocabulary row {token_id} for [UNL] and cannot be "
                        "active or merged together; choose one of them, or make one with another token_id"
                    )

    def merged_weight(self, weight: torch.Tensor, adapter_name: str) -> torch.Tensor:
        merged = weight.clone()
        for token_id, row in self.rows([adapter_name]):
            merged[token_id] = row.detach().to(weight)
        return merged

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """See the kinds of row layers."""
        return self.by_rows(x, *args, **kwargs)

    def __repr__(self) -> str:
        return "unierase." + super().__repr__()


class InputRowLayer(TokenRowLayer):
    """An input embedding in which [UNL] has a vector of its own (scaled like all others where the base scales)."""

    def edited(self, x: torch.Tensor, live: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """`(...)` ids to `(..., d)` embeddings."""
        result = self.base_layer(x, *args, **kwargs)
        scale = self._get_embed_scale() if live else None
        for token_id, row in self.rows(live):
            row = self.in_memory(row, x)
            if scale is not None:
                row = row * scale.to(row)
            here = (x == token_id).unsqueeze(-1)
            result = torch.where(here, row.to(result.dtype), result)
        return result


class OutputRowLayer(TokenRowLayer):
    """An output head in which [UNL] has a logit of its own (with the base's bias, where it has one)."""

    def edited(self, x: torch.Tensor, live: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """`(..., d)` hidden states to `(..., vocabulary)` logits."""
        result = self.base_layer(x, *args, **kwargs)
        bias = getattr(self.get_base_layer(), "bias", None)
        for token_id, row in self.rows(live):
            cast = x if x.dtype == row.dtype else self._cast_input_dtype(x, row.dtype)
            logit = cast @ self.in_memory(row, x)
            if bias is not None:
                logit = logit + bias[token_id]
            # In place: these logits were just made by the base layer and nobody else holds them.
            result.select(-1, token_id).copy_(logit)
        return result


def _each(rows: torch.Tensor) -> Sequence[torch.Tensor]:
    return [rows] if rows.dim() == 1 else rows.unbind()


def resize_vocabulary(model: Any, rows: int) -> None:
    """Give embedding and head this many rows, also where they are wrapped for erasures that stay as they are."""
    layers = {name: model.get_submodule(name) for name in find_token_modules(model)}
    wrapped = {name: layer for name, layer in layers.items() if isinstance(layer, BaseTunerLayer)}
    for name, layer in wrapped.items():
        model.set_submodule(name, layer.get_base_layer())
    model.resize_token_embeddings(rows)
    for name, layer in wrapped.items():
        resized: Any = model.get_submodule(name)
        layer.base_layer = resized
        if isinstance(resized, torch.nn.Embedding):
            layer.in_features = rows
        else:
            layer.out_features = rows
        model.set_submodule(name, layer)
