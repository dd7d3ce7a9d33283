"""The edit of a projection of an MLP: a low-rank update `B A`, added to its weight `W`."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..errors import InputError
from .config import AdapterConfig
from .swap import SwappingLayer


class EditLayer(nn.Module, SwappingLayer):
    """A projection with low-rank edits: `y = W x + sum over active adapters of B (A x)`.

    The edits are computed in the adapter's own dtype (PEFT keeps adapters in fp32) and cast once, to the dtype of `y`.

    Args:
        base_layer: The projection, `nn.Linear` (also a quantised kind of it) or `Conv1D`, `d_in` to `d_out`.
        adapter_name: First adapter.
        config: Its configuration.
        rank: Rank of its edit; by default `config.r`.
    """

    adapter_layer_names = ("unierase_A", "unierase_B")

    def __init__(
        self, base_layer: nn.Module, adapter_name: str, config: AdapterConfig, rank: int | None = None
    ) -> None:
        super().__init__()
        SwappingLayer.__init__(self, base_layer)
        self.unierase_A = nn.ParameterDict({})
        self.unierase_B = nn.ParameterDict({})
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, rank)

    def update_layer(self, adapter_name: str, config: AdapterConfig, rank: int | None = None) -> None:
        """Add an adapter: `A` of shape `(r, d_in)` at random, `B` of shape `(d_out, r)` zero unless told otherwise.

        Both are zero for one that was read from files, whose weights are loaded next.
        """
        rank = rank or config.r
        draw = torch.zeros if config.from_file else torch.randn
        a = draw(rank, self.in_features) / self.in_features**0.5
        b = (torch.zeros if config.init_weights else draw)(self.out_features, rank)
        self.unierase_A[adapter_name] = nn.Parameter(a)
        self.unierase_B[adapter_name] = nn.Parameter(b)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_factors(self, adapter_name: str, a: torch.Tensor, b: torch.Tensor) -> None:
        """Replace an adapter's factors, also by ones of another rank; the config's `r` and `rank_pattern` are the
        caller's to keep in step.

        Args:
            adapter_name: An adapter of this layer.
            a: `A`, `(r, d_in)`.
            b: `B`, `(d_out, r)`.

        Raises:
            ValueError: The factors do not fit each other or this layer; nothing is changed then.
        """
        rank = a.shape[0]
        if (tuple(a.shape), tuple(b.shape)) != ((rank, self.in_features), (self.out_features, rank)):
            raise InputError(
                f"factors of shapes {tuple(a.shape)} and {tuple(b.shape)} do not fit a projection from "
                f"{self.in_features} to {self.out_features}; A must be (r, {self.in_features}), "
                f"B ({self.out_features}, r)"
            )
        for factors, value in ((self.unierase_A, a), (self.unierase_B, b)):
            old = factors[adapter_name]
            factors[adapter_name] = nn.Parameter(value.detach().to(old).contiguous(), requires_grad=old.requires_grad)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """`B A` of one adapter in the layout of the base weight: `(d_out, d_in)`, or `(d_in, d_out)` for `Conv1D`."""
        delta = self.unierase_B[adapter_name].detach() @ self.unierase_A[adapter_name].detach()
        return delta.T if isinstance(self.get_base_layer(), Conv1D) else delta

    def merged_weight(self, weight: torch.Tensor, adapter_name: str) -> torch.Tensor:
        delta = self.get_delta_weight(adapter_name)
        return (weight.to(delta.dtype) + delta.to(weight.device)).to(weight.dtype)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`(..., d_in)` to `(..., d_out)`, in the dtype of the base layer's output."""
        return self.by_rows(x, *args, **kwargs)

    def edited(self, x: torch.Tensor, live: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        result = self.base_layer(x, *args, **kwargs)
        for name in live:
            a = self.in_memory(self.unierase_A[name], x)
            cast = x if x.dtype == a.dtype else self._cast_input_dtype(x, a.dtype)
            update = nn.functional.linear(nn.functional.linear(cast, a), self.unierase_B[name])
            result = result + update.to(result.dtype)
        return result

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "unierase." + super().__repr__()
