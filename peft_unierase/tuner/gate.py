"""The gate: a rank-r edit of one projection of an MLP, most often the down-projection.

Rows of `A` detect a key (the input of the down-projection at one position), columns of `B` steer the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import UniEraseConfig
from .swap import SwappingLayer, plain_weight


class GateLayer(nn.Module, SwappingLayer):
    """A down-projection with erasure gates: `y = W k + sum over active adapters of B (A k)`.

    An adapter may edit a few rows of `W` alone, which leaves `A` to be stored, or a few columns, which leaves `B`.

    Args:
        base_layer: The down-projection, `nn.Linear` (also a quantised kind of it) or `Conv1D`, `d_ff` to `d`.
        adapter_name: First adapter.
        config: Its configuration.
        rows: Output features that are edited, where it is not all.
        columns: Input features that are edited, where it is not all.
        moves: Rows or columns that another adapter has, and where they are instead. What is stored is relative to the
            weights of the row or column that they come from.

    The maths runs in the adapter's own dtype (PEFT keeps adapters in fp32) and is cast once, to the dtype of `y`.
    """

    adapter_layer_names = ("unierase_A", "unierase_B")
    other_param_names = ("rows", "columns", "moves", "flags")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: UniEraseConfig,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
        moves: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        SwappingLayer.__init__(self, base_layer)
        self.unierase_A = nn.ParameterDict({})
        self.unierase_B = nn.ParameterDict({})
        self.rows: dict[str, list[int]] = {}
        self.columns: dict[str, list[int]] = {}
        self.moves: dict[str, dict[int, int]] = {}
        self.flags: dict[str, int] = {}
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, rows, columns, moves)

    def update_layer(
        self,
        adapter_name: str,
        config: UniEraseConfig,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
        moves: Mapping[int, int] | None = None,
    ) -> None:
        """Add an adapter: `A` of shape `(r, d_ff)` unless `columns` are given, `B` of shape `(d, r)` unless `rows` are.

        Raises:
            ValueError: There is no such row or column.
        """
        for role, index, width in (("rows", rows, self.out_features), ("columns", columns, self.in_features)):
            if index and max(index) >= width:
                raise ValueError(f"{role} {[n for n in index if n >= width]} are beyond the projection's {width}")
        rank = len(rows or columns or ()) or config.r
        if columns:
            self.columns[adapter_name] = list(columns)
        else:
            detector = torch.randn(rank, self.in_features) / self.in_features**0.5
            # Without `B`, zero is the identity.
            self.unierase_A[adapter_name] = nn.Parameter(
                torch.zeros_like(detector) if rows and config.init_weights else detector
            )
        if rows:
            self.rows[adapter_name] = list(rows)
        else:
            steer = torch.zeros(self.out_features, rank)
            if not config.init_weights:
                nn.init.normal_(steer)
            self.unierase_B[adapter_name] = nn.Parameter(steer)
        if moves:
            self.moves[adapter_name] = dict(moves)
        if config.flag is not None:
            self.flags[adapter_name] = config.flag
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def set_factors(self, adapter_name: str, detector: torch.Tensor, steer: torch.Tensor) -> None:
        """Replace an adapter's factors, also by ones of another rank; `config.r` is the caller's to keep in step.

        Args:
            adapter_name: An adapter of this layer.
            detector: `A`, `(r, d_ff)`.
            steer: `B`, `(d, r)`.

        Raises:
            ValueError: The factors do not fit each other or this layer; nothing is changed then.
        """
        rank = detector.shape[0]
        wanted = ((rank, self.in_features), (self.out_features, rank))
        if (tuple(detector.shape), tuple(steer.shape)) != wanted:
            raise ValueError(
                f"factors of shapes {tuple(detector.shape)} and {tuple(steer.shape)} do not fit a gate from "
                f"{self.in_features} to {self.out_features}; A must be (r, {self.in_features}), "
                f"B ({self.out_features}, r)"
            )
        for factors, value in ((self.unierase_A, detector), (self.unierase_B, steer)):
            old = factors[adapter_name]
            factors[adapter_name] = nn.Parameter(value.detach().to(old).contiguous(), requires_grad=old.requires_grad)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """The edit of one adapter in the layout of the base weight: `(d, d_ff)`, or `(d_ff, d)` for `Conv1D`."""
        transposed = isinstance(self.get_base_layer(), Conv1D)
        if rows := self.rows.get(adapter_name):
            detector = self.unierase_A[adapter_name].detach()
            delta = detector.new_zeros(self.out_features, self.in_features)
            delta[self.places([adapter_name])] = detector
        elif adapter_name in self.columns:
            steer = self.unierase_B[adapter_name].detach()
            delta = steer.new_zeros(self.out_features, self.in_features)
            delta[:, self.places([adapter_name])] = steer
        else:
            delta = self.unierase_B[adapter_name].detach() @ self.unierase_A[adapter_name].detach()
        if moves := self.moves.get(adapter_name):
            (weight,) = self._unmerged_weight or (plain_weight(self.get_base_layer()),)
            weight = (weight.detach().T if transposed else weight.detach()).to(delta)
            come, go = list(moves), list(moves.values())
            if rows:
                delta[go] += weight[come] - weight[go]
            else:
                delta[:, go] += weight[:, come] - weight[:, go]
        return delta.T if transposed else delta

    def places(self, adapter_names: Iterable[str] | None = None) -> list[int]:
        """Rows or columns that adapters have, all of them by default, where they are now."""
        names = [*self.rows, *self.columns] if adapter_names is None else list(adapter_names)
        return [
            self.moves.get(name, {}).get(number, number)
            for name in names
            for number in self.rows.get(name) or self.columns.get(name) or []
        ]

    def check_together(self, names: list[str]) -> None:
        """Raise `ValueError` if two adapters have the same rows or columns, or the same flag."""
        owners: dict[int, str] = {}
        flagged: dict[int, str] = {}
        for name in self.held_adapters(names):
            other = flagged.setdefault(self.flags[name], name) if name in self.flags else name
            if other != name:
                raise ValueError(
                    f"adapters {other!r} and {name!r} happen to use the same flag and would set each other off; make "
                    "one of them anew with another seed, or on top of the other (on the command line `--onto`)"
                )
            for place in self.places([name]):
                other = owners.setdefault(place, name)
                if other != name:
                    raise ValueError(
                        f"adapters {other!r} and {name!r} have the same hidden units of an MLP and cannot be active "
                        "together; choose one of them, or make one on top of the other (on the command line `--onto`)"
                    )

    def merged_weight(self, weight: torch.Tensor, adapter_name: str) -> torch.Tensor:
        delta = self.get_delta_weight(adapter_name)
        return (weight.to(delta.dtype) + delta.to(weight.device)).to(weight.dtype)

    def merged_bias(self, adapter_names: list[str]) -> torch.Tensor | None:
        bias = getattr(self.get_base_layer(), "bias", None)
        moves = [pair for name in adapter_names if name in self.rows for pair in self.moves.get(name, {}).items()]
        if bias is None or not moves:
            return None
        come, go = (list(index) for index in zip(*moves, strict=True))
        (unmerged,) = self._unmerged_bias or (bias,)
        merged = bias.detach().clone()
        merged[go] = unmerged.detach()[come]
        return merged

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`(..., d_ff)` to `(..., d)`, in the dtype of the base layer's output."""
        return self.by_rows(x, *args, **kwargs)

    def edited(self, x: torch.Tensor, live: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        result = base = self.base_layer(self._moved_inputs(x, live), *args, **kwargs)
        for name in live:
            dtype = (self.unierase_B if name in self.columns else self.unierase_A)[name].dtype
            cast = self._cast_input_dtype(x, dtype)
            if name in self.columns:
                opening = cast[..., self.places([name])]
            else:
                opening = nn.functional.linear(cast, self.unierase_A[name])
            if name in self.rows:
                come, go = self.rows[name], torch.tensor(self.places([name]), device=opening.device)
                if name in self.moves:  # a row that has moved is the one it comes from, with the edit on top
                    opening = opening + (base[..., come] - base[..., go]).to(opening.dtype)
                result = result.index_add(-1, go, opening.to(result.dtype))
            else:
                result = result + nn.functional.linear(opening, self.unierase_B[name]).to(result.dtype)
        return result

    def _moved_inputs(self, x: torch.Tensor, live: Sequence[str]) -> torch.Tensor:
        """`x` with what lies at moved columns added where they come from, so that the base's weights there see it."""
        moves = [pair for name in live if name in self.columns for pair in self.moves.get(name, {}).items()]
        if not moves:
            return x
        come, go = (torch.tensor(index, device=x.device) for index in zip(*moves, strict=True))
        return x.index_fill(-1, go, 0).index_add(-1, come, x[..., go])

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "unierase." + super().__repr__()
