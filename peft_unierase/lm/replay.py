"""Running only the upper part of a model, from residual states that were recorded once.

Fitting targets changes the residual stream after one decoder layer over and over; what lies below never changes and
need not be computed again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .batches import Batch
from .trace import traced_output


class _Skipped(nn.Module):
    """Stands in for a decoder layer: passes the stream on, or puts recorded states in its place."""

    def __init__(self, layer: nn.Module, returns_tuple: bool, states: torch.Tensor | None) -> None:
        super().__init__()
        self._layer = [layer]  # in a list, so that it does not count as a submodule
        self.returns_tuple = returns_tuple
        self.states = states

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._layer[0], name)  # models read attributes such as `attention_type` off a layer

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        out = hidden_states if self.states is None else self.states
        return (out,) if self.returns_tuple else out


class Recording:
    """The residual stream behind decoder layer `layer`, recorded for one batch.

    Args:
        model: A causal language model.
        layers: Its decoder layers.
        layer: Index of the layer behind which to record.
        batch: What to run.

    Attributes:
        batch: The batch.
        states: `(batch, length, d)`, detached.
    """

    def __init__(self, model: nn.Module, layers: nn.ModuleList, layer: int, batch: Batch) -> None:
        self.model, self.layers, self.layer, self.batch = model, layers, layer, batch
        with torch.no_grad(), traced_output(layers[layer]) as seen:
            model(**batch.inputs(), use_cache=False, logits_to_keep=1)
        self.returns_tuple = isinstance(seen[0], tuple)
        self.states: torch.Tensor = seen[0][0] if self.returns_tuple else seen[0]

    def logits(self, states: torch.Tensor, keep: int = 0) -> torch.Tensor:
        """Logits from `states` (shape as recorded) upwards: `(batch, keep or length, vocabulary)`."""
        with self._upper_part(states):
            return self.model(**self.batch.inputs(), use_cache=False, logits_to_keep=keep).logits

    @contextmanager
    def _upper_part(self, states: torch.Tensor) -> Iterator[None]:
        originals = list(self.layers[: self.layer + 1])
        try:
            for index, layer in enumerate(originals):
                self.layers[index] = _Skipped(layer, self.returns_tuple, states if index == self.layer else None)
            yield
        finally:
            for index, layer in enumerate(originals):
                self.layers[index] = layer
