"""Stage II: one gate a layer, layer after layer, each making up for what is still missing.

As in MEMIT (arXiv 2210.07229, algorithm 1) keys of the forget set and what the earlier gates answer to them are
computed anew before each layer. How the residual is spread over the layers that are left is not fixed beforehand: the
rows of all of them are solved together, and the lowest is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from ..trace import inputs_at
from .answered import Sequences
from .detector import ShutKeys, solve_detectors


def edit_layers(
    model: Any,
    gates: Sequence[tuple[Any, nn.Parameter, nn.Parameter]],
    steer: torch.Tensor,
    forget: Sequences,
    depth: int,
    shut: ShutKeys,
    retain_weight: float,
    pad: int,
    advance: Callable[[int], object] = lambda count: None,
) -> None:
    """Write one gate into each layer: the last row of `A (r, d_ff)` and the last column of `B (d, r)`.

    Args:
        model: The model, its gates shut (those columns zero).
        gates: Down-projection, `A` and `B` of each edited layer, from the lowest.
        steer: The steer vector, `(d,)`.
        forget: Forget prompts with their answers.
        depth: How many answer positions behind the door are gated too. Doors weigh as much as all of those together.
        shut: The keys to stay shut on, those of all layers side by side.
        retain_weight: Weight of each group of shut keys beside the forget keys.
        pad: Id to pad batches with.
        advance: Called with 1 after each layer.
    """
    cut, positions = forget.gated(depth)
    doors = torch.cat([torch.arange(len(p)) == 0 for p in positions]).to(steer.device)
    others = int((~doors).sum())
    weights = torch.where(doors, 1 / int(doors.sum()), 1 / max(1, others))
    close_gates(gates)

    fixed = torch.zeros(0, device=steer.device)
    missing = torch.ones(len(doors), device=steer.device)
    for number, (projection, rows, columns) in enumerate(gates):
        left = [gate for gate, _, _ in gates[number:]]
        keys = torch.cat([torch.cat(at) for at in inputs_at(model, left, cut, positions, pad)], dim=1)
        solved = solve_detectors(keys, missing, weights, shut, fixed, retain_weight)
        width = projection.in_features
        row = solved[:width]
        rows.data[-1] = row
        columns.data[:, -1] = steer
        missing = missing - keys[:, :width] @ row
        fixed = torch.cat([fixed, row])
        advance(1)


def close_gates(gates: Sequence[tuple[Any, nn.Parameter, nn.Parameter]]) -> None:
    """Take the gates of this run out of the model again."""
    for _, _, columns in gates:
        columns.data[:, -1] = 0
