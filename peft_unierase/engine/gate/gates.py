"""Stage II: one gate a layer, all solved together on the keys of the base.

The rows of as many layers as memory allows, a block, are solved at once; between blocks the residual is spread evenly,
as MEMIT (arXiv 2210.07229, algorithm 1) spreads it over layers. MEMIT also takes the keys of a layer anew once those
below are edited. Gates must not: what an open gate writes into the stream reaches the keys above it, a detector fitted
to those hears its own echo, and opens wherever one below does, wrongly or not. So the rows are solved on the base's
keys, and once more with the echo of the first solution among what they must stay shut on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ...prompts import batches
from ..trace import inputs_at, traced_inputs
from .answered import Sequences
from .detector import ShutKeys, solve_detectors

Gate = tuple[Any, nn.Parameter, nn.Parameter]


def in_blocks(gates: Sequence[Gate], widest: int) -> list[list[Gate]]:
    """Neighbouring gates in blocks whose keys side by side are at most `widest` wide, or of one gate alone."""
    blocks: list[list[Gate]] = []
    width = 0
    for gate in gates:
        if not blocks or width + gate[0].in_features > widest:
            blocks.append([])
            width = 0
        blocks[-1].append(gate)
        width += gate[0].in_features
    return blocks


class GateEdit:
    """Writes gates into the layers: the last row of each `A (r, d_ff)` and the last column of each `B (d, r)`.

    Args:
        model: The model; gates that are open are shut.
        blocks: Down-projection, `A` and `B` of each edited layer, from the lowest, in blocks that are solved together.
        forget: Forget prompts with their answers.
        depth: How many answer positions behind the door are gated too. Doors weigh as much as all of those together.
        pad: Id to pad batches with.
    """

    def __init__(
        self,
        model: Any,
        blocks: Sequence[Sequence[Gate]],
        forget: Sequences,
        depth: int,
        pad: int,
    ) -> None:
        self.model, self.blocks, self.pad = model, blocks, pad
        self.device = model.get_input_embeddings().weight.device
        self.cut, self.positions = forget.gated(depth)
        doors = torch.cat([torch.arange(len(p)) == 0 for p in self.positions]).to(self.device)
        others = int((~doors).sum())
        self.weights = torch.where(doors, 1 / int(doors.sum()), 1 / max(1, others))
        self.close()

    def close(self) -> None:
        """Shut the gates, which must be shut while the keys of the base are recorded."""
        self._open(torch.zeros(()))

    @cached_property
    def keys(self) -> list[torch.Tensor]:
        """The forget keys of each block on the base, recorded when they are first needed; the gates are shut then."""
        self.close()
        return self._recorded()

    def detect(self, shut: Sequence[ShutKeys], retain_weight: float) -> None:
        """Solve and write the rows of all `A`; the gates stay shut.

        Args:
            shut: The keys to stay shut on, for each block those of its layers side by side.
            retain_weight: Weight of each group of shut keys beside the forget keys.
        """
        self._solve(shut, retain_weight, [None] * len(self.blocks))
        self.close()

    @torch.no_grad()
    def openings(self, sequences: Sequences) -> list[torch.Tensor]:
        """How far the gates would open: for each prompt with its answer a tensor `(layers, length)`."""
        whole = sequences.whole()
        found: list[torch.Tensor] = [torch.zeros(0)] * len(whole)
        gates = [gate for block in self.blocks for gate in block]
        for batch in batches(whole, self.pad, self.device):
            with traced_inputs([projection for projection, _, _ in gates], len(batch.index)) as seen:
                self.model(**batch.inputs(), use_cache=False, logits_to_keep=1)
            answers = [
                (keys.float() @ rows[-1]).to(self.device) for keys, (_, rows, _) in zip(seen, gates, strict=True)
            ]
            opened = torch.stack(answers)
            for row, index in enumerate(batch.index):
                found[index] = opened[:, row, -len(whole[index]) :].clone()
        return found

    def write(
        self,
        steer: torch.Tensor,
        shut: Sequence[ShutKeys],
        retain_weight: float,
        advance: Callable[[int], object] = lambda count: None,
    ) -> None:
        """Solve and write all rows, with the echo of the first solution in a second one; then open the gates.

        Args:
            steer: The steer vector, `(d,)`.
            shut: The keys to stay shut on, for each block those of its layers side by side.
            retain_weight: Weight of each group of shut keys beside the forget keys.
            advance: Called with 1 after each of the two solutions.
        """
        self._solve(shut, retain_weight, [None] * len(self.blocks))
        self._open(steer)
        advance(1)
        echo = [after - before for after, before in zip(self._recorded(), self.keys, strict=True)]
        self._solve(shut, retain_weight, echo)
        advance(1)

    def _open(self, steer: torch.Tensor) -> None:
        for _, _, columns in (gate for block in self.blocks for gate in block):
            columns.data[:, -1] = steer

    def _recorded(self) -> list[torch.Tensor]:
        """The forget keys of each block, its layers side by side, `(u, D)` in fp32."""
        gates = [projection for block in self.blocks for projection, _, _ in block]
        found = iter(inputs_at(self.model, gates, self.cut, self.positions, self.pad))
        return [torch.cat([torch.cat(next(found)).to(self.device) for _ in block], dim=1) for block in self.blocks]

    def _solve(self, shut: Sequence[ShutKeys], retain_weight: float, echoes: Sequence[torch.Tensor | None]) -> None:
        missing = torch.ones_like(self.weights)
        for turn, (block, keys) in enumerate(zip(self.blocks, self.keys, strict=True)):
            share = missing / (len(self.blocks) - turn)
            solved = solve_detectors(keys, share, self.weights, shut[turn], retain_weight, echoes[turn])
            missing = missing - keys @ solved
            parts = solved.split([projection.in_features for projection, _, _ in block])
            for (_, rows, _), row in zip(block, parts, strict=True):
                rows.data[-1] = row
