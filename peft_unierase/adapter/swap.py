"""Merging by exchanging a weight, so that unmerging gives back the very tensor that was there.

Adding a delta and subtracting it again leaves rounding behind (4.9e-4 in bf16), and writing into the data of a tied
weight changes the other matrix too. Both layers of this tuner therefore put a new parameter in place and keep the old.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import nn

from ..errors import InputError, StateError
from ..lm.weights import is_plain
from .switch import Switch


def off_while_named(names: str | list[str]) -> str:
    """Why adapters cannot be named while all of them are switched off."""
    named = repr(names) if isinstance(names, str) else ", ".join(map(repr, names))
    return (
        f"{named} cannot be on, because all adapters of the model are switched off; leave the `disable_adapter()` "
        "block, or call `enable_adapter_layers()` (of a transformers model `enable_adapters()`), and name it then"
    )


def _kind(weight: torch.Tensor) -> str:
    """Its format, and what is behind it where that is not the truth."""
    behind = "" if type(weight.data) is torch.Tensor else f" ({type(weight.data).__name__})"
    return f"{weight.dtype}{behind}"


class SwappingLayer(BaseTunerLayer):
    """A tuner layer whose merge replaces the base weight and whose unmerge restores the original parameter."""

    def __init__(self, base_layer: nn.Module) -> None:
        self.base_layer = base_layer
        self._disable_adapters = False
        self.merged_adapters: list[str] = []
        self.switch = Switch()  # of this layer alone, until it joins those of a model
        # In a tuple, because a bare parameter would be registered, and then saved as part of the adapter.
        self._unmerged_weight: tuple[nn.Parameter] | None = None

    @abstractmethod
    def merged_weight(self, weight: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """`weight` with one adapter folded in: a new tensor of the same shape and dtype, `weight` untouched."""

    def check_together(self, adapter_names: list[str]) -> None:
        """Raise `ValueError` if two of these adapters cannot be at work in this layer at once; by default any can."""

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters.

        Raises:
            ValueError: Two of them cannot be active together, or all are switched off, so that they would not be on.
        """
        self.check_together([adapter_names] if isinstance(adapter_names, str) else adapter_names)
        if adapter_names and self._disable_adapters and not self.switch.own_change:
            raise InputError(off_while_named(adapter_names))
        super().set_adapter(adapter_names, inference_mode=inference_mode)

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters of this layer on or off; see `BaseTunerLayer.enable_adapters`."""
        self._disable_adapters = not enabled  # first, because `set_adapter` refuses while they are off
        super().enable_adapters(enabled)

    def on(self) -> list[str]:
        """The adapters that are switched on, whether or not they have weights in this layer."""
        return [] if self._disable_adapters else self.active_adapters

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # An offloaded weight is on the meta device, where the adapter's would be lost without a word.
        base_layer = self.get_base_layer()
        if device is None and base_layer.weight.is_meta:
            runs_on = getattr(getattr(base_layer, "_hf_hook", None), "execution_device", None)
            device = torch.device("cpu" if runs_on is None else runs_on)
        super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    def held_adapters(self, adapter_names: list[str]) -> list[str]:
        """Those of `adapter_names` that have weights in this layer, in the order given."""
        parts = [getattr(self, part) for part in self.adapter_layer_names]
        return [name for name in adapter_names if any(name in part for part in parts)]

    def check_mergeable(self) -> None:
        """Raise `ValueError` if the base weight is offloaded or quantised, also to an 8-bit float that has its scale
        elsewhere.
        """
        weight = self.get_base_layer().weight
        if weight.is_meta:
            raise InputError(
                "cannot merge into a weight that is offloaded: load the whole base into memory to merge, or keep the "
                "adapter live on the offloaded base"
            )
        if not is_plain(weight):
            raise InputError(
                f"cannot merge into a weight of dtype {_kind(weight)}: load the base in float32, bfloat16 or float16 "
                "to merge, or keep the adapter live on the quantised base"
            )

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Fold adapters into the base weight.

        Args:
            safe_merge: Raise, before anything has changed, if the result is not finite.
            adapter_names: Adapters to merge; `None` merges the active ones.

        Raises:
            ValueError: The base weight is quantised or offloaded, two adapters cannot be at work together, or
                `safe_merge` found a value that is not finite.
            RuntimeError: Another thread is in a forward pass of the model.
        """
        with self.switch.change(alone="merge"):
            self._merge(safe_merge, adapter_names)

    def _merge(self, safe_merge: bool, adapter_names: list[str] | None) -> None:
        self.check_together([*self.merged_adapters, *(adapter_names or self.active_adapters)])
        names = self.held_adapters(check_adapters_to_merge(self, adapter_names))
        if not names:
            return
        base_layer = self.get_base_layer()
        self.check_mergeable()
        weight = base_layer.weight.detach()
        for name in names:
            weight = self.merged_weight(weight, name)
            if safe_merge and not torch.isfinite(weight).all():
                raise InputError(f"NaNs detected in the merged weights. The adapter {name} seems to be broken")
        if self._unmerged_weight is None:
            self._unmerged_weight = (base_layer.weight,)
        base_layer.weight = nn.Parameter(weight, requires_grad=False)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Put the base's original parameter back: the same object, so the same bits (and the same tie).

        Raises:
            RuntimeError: Another thread is in a forward pass of the model.
        """
        with self.switch.change(alone="unmerge"):
            if self._unmerged_weight is None:
                warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
                return
            (weight,) = self._unmerged_weight
            base_layer = self.get_base_layer()
            # The model may have been moved meanwhile, which does not reach a tensor that is no parameter of it.
            weight.data = weight.data.to(base_layer.weight)
            base_layer.weight = weight
            self._unmerged_weight = None
            self.merged_adapters.clear()

    @abstractmethod
    def edited(self, x: torch.Tensor, live: list[str], *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the layer gives with these adapters at work."""

    def by_rows(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What the layer gives with the adapters at work that are on, or in a mixed batch with each row's own.

        Rows may have become more on their way, by beams or because positions were laid out as rows; they are neighbours
        then.

        Raises:
            RuntimeError: The adapter was offloaded, so that nothing would be erased.
        """
        note = self.switch.now()
        if note is None or note[1] is None:
            live = self.live_adapters(self.on() if note is None else note[0])
            if not live:
                return self.base_layer(x, *args, **kwargs)
            return self.edited(x, live, *args, **kwargs)
        each, left = divmod(len(x), len(note[1]))
        if left:
            raise InputError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(note[1])} and {len(x)} respectively."
            )
        rows: dict[tuple[str, ...], list[int]] = {}
        for number, names in enumerate(note[1]):
            rows.setdefault(tuple(self.held_adapters(names)), []).extend(range(number * each, (number + 1) * each))
        parts = [self.edited(x[index], list(names), *args, **kwargs) for names, index in rows.items()]
        order = torch.tensor([number for index in rows.values() for number in index], device=x.device).argsort()
        return torch.cat(parts)[order]

    @staticmethod
    def in_memory(part: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """`part` of an adapter, if it can be used on `x`.

        Raises:
            RuntimeError: It was offloaded, so that nothing would be erased.
        """
        if part.is_meta and not x.is_meta:
            raise StateError(
                "PEFT has offloaded the erasure together with the base, from where it cannot be used; load the base "
                "anew and put the erasure on it with `peft_unierase.load`, which leaves it in memory"
            )
        return part

    def live_adapters(self, on: list[str]) -> list[str]:
        """Those of the adapters that are on which this forward pass has to apply; if none is on, first undoes a
        merge."""
        if self.merged:
            if not on:
                self.unmerge()
            return []
        return self.held_adapters(on)
