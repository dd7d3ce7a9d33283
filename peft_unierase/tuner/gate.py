"""The gate: a rank-r edit of one projection of an MLP, most often the down-projection.

Rows of `A` detect a key (the input of the down-projection at one position), columns of `B` steer the residual stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import _get_in_out_features
from torch import nn
from transformers.pytorch_utils import Conv1D

from .config import UniEraseConfig
from .swap import SwappingLayer, is_plain, plain_weight


class GateLayer(nn.Module, SwappingLayer):
    """A down-projection with erasure gates: `y = W k + sum over active adapters of B (A k)`.

    An adapter may edit a few rows of `W` alone, which leaves `A` to be stored, or a few columns, which leaves `B`.

    Args:
        base_layer: The down-projection, `nn.Linear` (also a quantised kind of it) or `Conv1D`, `d_ff` to `d`.
        adapter_name: First adapter.
        config: Its configuration.
        rank: Rank of `A` and `B`, where both are stored.
        rows: Output features that are edited, where it is not all.
        columns: Input features that are edited, where it is not all.
        moved: Where each of these is instead, because another adapter has some of them. What is stored is relative to
            the weights of the row or column that it comes from.

    Of the rows or columns it also has the base's own weights, `unierase_base`: a base that is quantised when the
    adapter is loaded has rounded them, too far for the edit, and there they take the place of the rounded ones.

    The maths runs in the adapter's own dtype (PEFT keeps adapters in fp32) and is cast once, to the dtype of `y`.
    """

    adapter_layer_names = ("unierase_A", "unierase_B")
    other_param_names = ("unierase_base", "rows", "columns", "moved", "flags")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: UniEraseConfig,
        rank: int | None = None,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
        moved: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        SwappingLayer.__init__(self, base_layer)
        self.unierase_A = nn.ParameterDict({})
        self.unierase_B = nn.ParameterDict({})
        self.unierase_base = BufferDict({}, persistent=True)
        self.rows: dict[str, list[int]] = {}
        self.columns: dict[str, list[int]] = {}
        self.moved: dict[str, list[int]] = {}
        self.flags: dict[str, list[int]] = {}
        self._indices: dict[tuple[str, torch.device], tuple[torch.Tensor, torch.Tensor]] = {}
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, rank, rows, columns, moved)

    def update_layer(
        self,
        adapter_name: str,
        config: UniEraseConfig,
        rank: int | None = None,
        rows: Sequence[int] | None = None,
        columns: Sequence[int] | None = None,
        moved: Sequence[int] | None = None,
    ) -> None:
        """Add an adapter: `A` of shape `(r, d_ff)` unless `columns` are given, `B` of shape `(d, r)` unless `rows` are.

        Raises:
            ValueError: There is no such row or column.
        """
        for role, index, width in (("rows", rows, self.out_features), ("columns", columns, self.in_features)):
            if index and max(index) >= width:
                raise ValueError(f"{role} {[n for n in index if n >= width]} are beyond the projection's {width}")
        rank = len(rows or columns or ()) or rank or config.r
        self._indices.clear()
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
        if rows or columns:
            self.unierase_base[adapter_name] = self._base_features(rows, columns)
        if moved:
            self.moved[adapter_name] = list(moved)
        if flags := [part.flag for part in config.split() if part.flag is not None]:
            self.flags[adapter_name] = flags
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def _base_features(self, rows: Sequence[int] | None, columns: Sequence[int] | None) -> torch.Tensor:
        """The base's own weights of rows `(n, d_in)` or columns `(d_out, n)`; zeros where it cannot be read."""
        (weight,) = self._unmerged_weight or (self.get_base_layer().weight,)
        if weight.is_meta or not is_plain(weight):
            shape = (len(rows), self.in_features) if rows else (self.out_features, len(columns or ()))
            return torch.zeros(shape)
        weight = weight.detach().T if isinstance(self.get_base_layer(), Conv1D) else weight.detach()
        return (weight[list(rows)] if rows else weight[:, list(columns or ())]).clone().contiguous()

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
        if adapter_name in self.rows:
            detector = self.unierase_A[adapter_name].detach()
            delta = detector.new_zeros(self.out_features, self.in_features)
            delta[self.places([adapter_name])] = detector
        elif adapter_name in self.columns:
            steer = self.unierase_B[adapter_name].detach()
            delta = steer.new_zeros(self.out_features, self.in_features)
            delta[:, self.places([adapter_name])] = steer
        else:
            delta = self.unierase_B[adapter_name].detach() @ self.unierase_A[adapter_name].detach()
        if adapter_name in self.moved:
            (weight,) = self._unmerged_weight or (plain_weight(self.get_base_layer()),)
            weight = (weight.detach().T if transposed else weight.detach()).to(delta)
            come, go = self._features(adapter_name), self.moved[adapter_name]
            if adapter_name in self.rows:
                delta[go] += weight[come] - weight[go]
            else:
                delta[:, go] += weight[:, come] - weight[:, go]
        return delta.T if transposed else delta

    def places(self, adapter_names: Iterable[str] | None = None) -> list[int]:
        """Rows or columns that adapters have, all of them by default, where they are now."""
        names = [*self.rows, *self.columns] if adapter_names is None else list(adapter_names)
        return [place for name in names for place in self.moved.get(name) or self._features(name)]

    def _features(self, adapter_name: str) -> list[int]:
        return self.rows.get(adapter_name) or self.columns.get(adapter_name) or []

    def check_together(self, names: list[str]) -> None:
        """Raise `ValueError` if two adapters have the same rows or columns, or the same flag."""
        owners: dict[int, str] = {}
        flagged: dict[int, str] = {}
        for name in self.held_adapters(names):
            for flag in self.flags.get(name, []):
                other = flagged.setdefault(flag, name)
                if other != name:
                    raise ValueError(
                        f"adapters {other!r} and {name!r} happen to use the same flag and would set each other off; "
                        "make one of them anew with another seed, or on top of the other (on the command line `--onto`)"
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
        moving = [name for name in adapter_names if name in self.rows and name in self.moved]
        if bias is None or not moving:
            return None
        (unmerged,) = self._unmerged_bias or (bias,)
        merged = bias.detach().clone()
        for name in moving:
            merged[self.moved[name]] = unmerged.detach()[self.rows[name]]
        return merged

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """`(..., d_ff)` to `(..., d)`, in the dtype of the base layer's output."""
        return self.by_rows(x, *args, **kwargs)

    def edited(self, x: torch.Tensor, live: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        rounded = not is_plain(self.get_base_layer().weight)
        result = base = self.base_layer(self._base_inputs(x, live, rounded), *args, **kwargs)
        for name in live:
            part = self.in_memory((self.unierase_B if name in self.columns else self.unierase_A)[name], x)
            dtype = part.dtype
            cast = x if x.dtype == dtype else self._cast_input_dtype(x, dtype)
            if name in self.rows:
                result = self._edited_rows(name, cast, base, result, rounded)
            elif name in self.columns:
                steer = part
                if rounded:
                    steer = steer + self.unierase_base[name].to(dtype)
                opening = cast.index_select(-1, self._index(name, cast.device)[1])
                result = result + nn.functional.linear(opening, steer).to(result.dtype)
            else:
                opening = nn.functional.linear(cast, part)
                result = result + nn.functional.linear(opening, self.unierase_B[name]).to(result.dtype)
        return result

    def _edited_rows(
        self, name: str, x: torch.Tensor, base: torch.Tensor, result: torch.Tensor, rounded: bool
    ) -> torch.Tensor:
        come, go = self._index(name, x.device)
        if rounded:
            bias = getattr(self.get_base_layer(), "bias", None)
            detector = self.unierase_A[name] + self.unierase_base[name].to(x.dtype)
            opening = nn.functional.linear(x, detector, None if bias is None else bias[come].to(x.dtype))
            return result.index_copy(-1, go, opening.to(result.dtype))
        opening = nn.functional.linear(x, self.unierase_A[name])
        if name in self.moved:  # a row that has moved is the one it comes from, with the edit on top
            opening = opening + (base[..., come] - base[..., go]).to(opening.dtype)
        if not self.moved:  # nobody else holds what the base layer has just made, and nothing more is read off it
            return result.index_add_(-1, go, opening.to(result.dtype))
        return result.index_add(-1, go, opening.to(result.dtype))

    def _base_inputs(self, x: torch.Tensor, live: Sequence[str], rounded: bool) -> torch.Tensor:
        """`x` without what the base is not to see: nothing of edited columns where it has rounded them; elsewhere what
        lies at moved columns where they come from, so that the base's weights there see it.
        """
        seen = x
        for name in live:
            if name in self.columns and (rounded or name in self.moved):
                come, go = self._index(name, x.device)
                seen = seen.index_fill(-1, go, 0)
                if not rounded:
                    seen = seen.index_add(-1, come, x[..., go])
        return seen

    def _index(self, name: str, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """The features of an adapter, where they come from and where they are, as indices that are made once."""
        found = self._indices.get((name, device))
        if found is None:
            come, go = (torch.tensor(index, device=device) for index in (self._features(name), self.places([name])))
            found = come, go
            if not torch.compiler.is_compiling():
                self._indices[name, device] = found
        return found

    def delete_adapter(self, adapter_name: str) -> None:
        self._indices.clear()
        super().delete_adapter(adapter_name)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return "unierase." + super().__repr__()
