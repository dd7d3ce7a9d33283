"""Stage II: one gate a layer, layer after layer, each making up for what is still missing.

As in MEMIT (arXiv 2210.07229, algorithm 1) keys of the forget set and what the earlier gates answer to them are
computed anew before each layer. How the residual is spread over the layers that are left is not fixed beforehand: the
rows of as many of them as memory allows, a block, are solved together, and the lowest is written. Between blocks the
residual is spread evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..trace import inputs_at
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


def edit_layers(
    model: Any,
    blocks: Sequence[Sequence[Gate]],
    steer: torch.Tensor,
    forget: Sequences,
    depth: int,
    shut: Sequence[ShutKeys],
    retain_weight: float,
    pad: int,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Write one gate into each layer: the last row of `A (r, d_ff)` and the last column of `B (d, r)`.

    Args:
        model: The model, its gates shut (those columns zero).
        blocks: Down-projection, `A` and `B` of each edited layer, from the lowest, in blocks that are solved together.
        steer: The steer vector, `(d,)`.
        forget: Forget prompts with their answers.
        depth: How many answer positions behind the door are gated too. Doors weigh as much as all of those together.
        shut: The keys to stay shut on, for each block those of its layers side by side.
        retain_weight: Weight of each group of shut keys beside the forget keys.
        pad: Id to pad batches with.
        advance: Called with 1 after each layer.
    """
    cut, positions = forget.gated(depth)
    doors = torch.cat([torch.arange(len(p)) == 0 for p in positions]).to(steer.device)
    others = int((~doors).sum())
    weights = torch.where(doors, 1 / int(doors.sum()), 1 / max(1, others))
    close_gates([gate for block in blocks for gate in block])

    missing = torch.ones(len(doors), device=steer.device)
    for turn, (block, shut_here) in enumerate(zip(blocks, shut, strict=True)):
        later = missing * (1 - 1 / (len(blocks) - turn))
        fixed = torch.zeros(0, device=steer.device)
        for number, (projection, rows, columns) in enumerate(block):
            left = [gate for gate, _, _ in block[number:]]
            keys = torch.cat([torch.cat(at) for at in inputs_at(model, left, cut, positions, pad)], dim=1)
            row = solve_detectors(keys, missing - later, weights, shut_here, fixed, retain_weight)
            row = row[: projection.in_features]
            rows.data[-1] = row
            columns.data[:, -1] = steer
            missing = missing - keys[:, : len(row)] @ row
            fixed = torch.cat([fixed, row])
            advance(1)


def close_gates(gates: Sequence[Gate]) -> None:
    """Take the gates of this run out of the model again."""
    for _, _, columns in gates:
        columns.data[:, -1] = 0
