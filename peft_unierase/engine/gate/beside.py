"""A gate beside those of earlier erasures: what their detectors write, to be shown to its own comparator.

Their facts are not needed for that, nor are they there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ...tuner import EditLayer
from ..bench import Bench
from ..trace import bent_output, inputs_at
from .comparator import UNITS

OPENED = 0.3  # what the units of a detector are read with, about; see `UnitDetector.start`
SIZES = (0.5, 1.0, 1.5)
SEQUENCES = 24


class Beside:
    """What the erasures in a model that use hidden units write.

    Args:
        bench: With the adapter in place, its gate shut.
        tokens: Retained texts.
        positions: Positions in each at which to look.
    """

    def __init__(self, bench: Bench, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> None:
        self.bench, self.tokens, self.positions = bench, tokens[:SEQUENCES], positions[:SEQUENCES]
        self.written: list[tuple[int, torch.Tensor]] = []
        for index, block in enumerate(bench.stack):
            gates = [module for module in block.modules() if isinstance(module, EditLayer)]
            names = {name for gate in gates for name in getattr(gate, "columns", ())}
            for name in names - {bench.adapter} if index < bench.layers[1] else ():
                self.written += [(index, _written(gate, name)) for gate in gates if name in names]

    def disturbed(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """What goes into an MLP where an earlier erasure has opened below it, `(positions, d)` for each of them."""
        return [self._inputs(module, layer, size * vector) for layer, vector in self.written for size in SIZES]

    def _inputs(self, module: Any, layer: int, vector: torch.Tensor) -> torch.Tensor:
        bench = self.bench
        with bent_output(bench.stack[layer], lambda stream: stream + vector.to(stream)):
            found = inputs_at(bench.model, [module], self.tokens, self.positions, bench.pad)[0]
        return torch.cat(found).to(bench.device)


@torch.no_grad()
def _written(gate: Any, name: str) -> torch.Tensor:
    """What an erasure's units write into the residual stream when they open, `(d,)`, give or take its length."""
    base = gate.get_base_layer()
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    columns = weight[:, gate.columns[name]].float() + gate.unierase_B[name].float()
    columns = columns[:, :-UNITS]  # the last are those that [UNL] opens
    left, sizes, right = torch.linalg.svd(columns, full_matrices=False)
    sign = 1.0 if float(right[0].sum()) >= 0 else -1.0
    return left[:, 0] * sizes[0] * sign / (OPENED * columns.shape[1] ** 0.5)
