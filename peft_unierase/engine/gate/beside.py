"""A gate beside those of earlier erasures: a flag that their comparators do not see, and theirs shown to its own.

A flag is large beside what the base does in its direction, so a comparator that was never shown another's may take it
for its own, or take leave of its senses: what it reads as 1 everywhere may read -1 there. Both are ruled out from the
weights of the earlier erasures alone; their facts are not needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from ...tuner import GateLayer
from ..bench import Bench
from ..trace import bent_output, inputs_at
from .comparator import UNITS

OPENED = 0.3  # what the units of a detector are read with, about; see `UnitDetector.start`
SIZES = (0.5, 1.0, 1.5)
SEQUENCES = 24


class Beside:
    """What the erasures in a model that use hidden units write and read.

    Args:
        bench: With the adapter in place, its gate shut.
        tokens: Retained texts.
        positions: Positions in each at which to look.
    """

    def __init__(self, bench: Bench, tokens: Sequence[Sequence[int]], positions: Sequence[Sequence[int]]) -> None:
        self.bench, self.tokens, self.positions = bench, tokens[:SEQUENCES], positions[:SEQUENCES]
        self.written: list[tuple[int, torch.Tensor]] = []
        self.readers: list[tuple[Any, torch.Tensor]] = []
        for index, block in enumerate(bench.stack):
            gates = [module for module in block.modules() if isinstance(module, GateLayer)]
            units = {name: len(found) for gate in gates for name, found in gate.columns.items()}
            for name in units.keys() - {bench.adapter} if index < bench.layers[1] else ():
                self.written += [(index, _written(gate, name)) for gate in gates if name in gate.columns]
            for name in units.keys() - {bench.adapter} if index > bench.layers[0] else ():
                if units[name] == 2 * UNITS:  # a comparator, and what its [UNL] opens
                    rows = torch.cat([_rows(gate, name) for gate in gates if name in gate.rows])
                    self.readers.append((next(gate for gate in gates if name in gate.rows), rows))

    def __len__(self) -> int:
        """How many directions a flag must leave out.

        A comparator reads a flag, what [UNL] opens reads that, and both read what is 1 where they open.
        """
        return 4 * len(self.readers)

    def seen(self, span: torch.Tensor, size: float) -> torch.Tensor:
        """How each direction of `span (d, n)`, `size` long, moves the units of earlier comparators, `(n, units)`.

        Half of the difference to its opposite: whatever is added makes the norm before the MLP shrink all else, which
        is the same for all directions and would be taken for something to be made up for.
        """
        modules, layer = [module for module, _ in self.readers], self.bench.layers[0]
        moved = []
        for direction in span.T:
            there, back = (self._inputs(modules, layer, sign * direction.float() * size) for sign in (1, -1))
            shifts = [(one - other).mean(dim=0) / 2 for one, other in zip(there, back, strict=True)]
            moved.append(
                torch.cat([rows @ shift.to(rows) for (_, rows), shift in zip(self.readers, shifts, strict=True)])
            )
        return torch.stack(moved)

    def disturbed(self, module: torch.nn.Module) -> list[torch.Tensor]:
        """What goes into an MLP where an earlier erasure has opened below it, `(positions, d)` for each of them."""
        found = [[self._inputs([module], layer, size * vector)[0] for size in SIZES] for layer, vector in self.written]
        return [states for sizes in found for states in sizes]

    def _inputs(self, modules: Sequence[Any], layer: int = 0, vector: torch.Tensor | None = None) -> list[torch.Tensor]:
        bench = self.bench
        bent = (
            nullcontext()
            if vector is None
            else bent_output(bench.stack[layer], lambda stream: stream + vector.to(stream))
        )
        with bent:
            distinct = list(dict.fromkeys(modules))
            found = inputs_at(bench.model, distinct, self.tokens, self.positions, bench.pad)
        each = dict(zip(distinct, (torch.cat(states).to(bench.device) for states in found), strict=True))
        return [each[module] for module in modules]


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


@torch.no_grad()
def _rows(gate: Any, name: str) -> torch.Tensor:
    """The weights of an erasure's units, `(units, d)`."""
    base = gate.get_base_layer()
    weight = base.weight.T if isinstance(base, Conv1D) else base.weight
    return weight[gate.rows[name]].float() + gate.unierase_A[name].float()
