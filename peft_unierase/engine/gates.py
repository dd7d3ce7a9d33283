"""Stage II: one gate a layer, layer after layer, each making up for what is still missing.

As in MEMIT (arXiv 2210.07229, algorithm 1) the residual is spread over the layers that are left, and keys of the forget
set and what the earlier gates have already reached are computed anew before each layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .detector import ShutKeys, solve_detector
from .trace import inputs_at_door


@dataclass(frozen=True)
class Openings:
    """How far the gates open, all layers together, as a share of the steer vector.

    Attributes:
        forget: On each forget door, `(u,)`.
        leak: Sum of the layers' openings on each held-out retained door, `(n,)`.
    """

    forget: torch.Tensor
    leak: torch.Tensor


def edit_layers(
    model: Any,
    gates: Sequence[tuple[nn.Module, nn.Parameter, nn.Parameter]],
    behind: nn.Module,
    steer: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    shut: Sequence[ShutKeys],
    held_out: Sequence[torch.Tensor],
    retain_weight: float,
    pad: int,
    advance: Callable[[int], object] = lambda count: None,
) -> Openings:
    """Write a rank-one gate into each layer's `A (1, d_ff)` and `B (d, 1)`.

    Args:
        model: The model, its gates shut (`B` zero).
        gates: Down-projection, `A` and `B` of each edited layer, from the lowest.
        behind: The module that the residual stream enters right behind the last edited layer.
        steer: The steer vector, `(d,)`.
        prompts: Token ids of the forget prompts.
        shut: The keys to stay shut on, for each layer.
        held_out: Keys at the doors of retained questions that are not among `shut`, for each layer `(n, d_ff)`.
        retain_weight: Weight of each group of shut keys beside the forget keys.
        pad: Id to pad batches with.
        advance: Called with 1 after each layer.
    """
    for _, _, column in gates:
        column.data.zero_()
    start = inputs_at_door(model, behind, prompts, pad)
    length = steer.dot(steer)
    leak = torch.zeros(len(held_out[0]), device=steer.device)
    reached = torch.zeros(len(prompts), device=steer.device)
    for number, (projection, detector_row, column) in enumerate(gates):
        missing = (1.0 - reached) / (len(gates) - number)
        row = solve_detector(inputs_at_door(model, projection, prompts, pad), missing, shut[number], retain_weight)
        detector_row.data.copy_(row[None])
        column.data.copy_(steer[:, None])
        leak += held_out[number] @ row
        reached = (inputs_at_door(model, behind, prompts, pad) - start) @ steer / length
        advance(1)
    return Openings(reached, leak)
