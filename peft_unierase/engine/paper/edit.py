"""Stage II, second half: the edited layers, one after the other.

As in MEMIT (arXiv 2210.07229, algorithm 1) each layer makes up for an equal share of what is still missing at the last
one, with keys that the layers below have changed already; each update is AlphaEdit's (see `update`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ...lm.trace import inputs_at
from .null_space import NullSpace
from .update import earlier_keys, exact_factors, pad_rank, ridge_rows, truncate

RIDGE = 0.01  # lambda, relative to the mean squared norm of the forget keys before projection


@dataclass(frozen=True)
class EditedLayer:
    """What became of one layer.

    Attributes:
        rank: Rank of its factors.
        null_dimension: Dimension of its null space.
        key_share: Share of the forget keys' energy that lies in the null space.
        energy_kept: Share of the edit's energy kept after truncation; 1 for exact factors.
        earlier: How many keys of earlier erasures were protected.
    """

    rank: int
    null_dimension: int
    key_share: float
    energy_kept: float
    earlier: int


def edit_layers(
    model: Any,
    projections: Sequence[Any],
    behind: nn.Module,
    adapter: str,
    prompts: Sequence[Sequence[int]],
    marks: Sequence[int],
    targets: torch.Tensor,
    spaces: Sequence[NullSpace],
    share: float | None,
    pad: int,
    advance: Callable[[int], Any] = lambda count: None,
) -> list[EditedLayer]:
    """Write every edit's factors, zero-padded to one rank.

    Args:
        model: The model, its edits zero.
        projections: The edited projections, lowest first.
        behind: The module that the residual stream enters right behind the last of their layers.
        adapter: The adapter to write. Keys of other active ones in these layers are protected.
        prompts: Token ids of the forget prompts.
        marks: For each the position of its key.
        targets: What the stream shall be there behind the last edited layer, `(prompts, d)`.
        spaces: The null space of each projection's keys.
        share: Share of each edit's energy to keep; `None` keeps the exact factors.
        pad: Id to pad batches with.
        advance: Called with 1 after each layer.
    """
    positions = [[mark] for mark in marks]
    prompts = [prompt[: mark + 1] for prompt, mark in zip(prompts, marks, strict=True)]
    edited = []
    for number, (projection, space) in enumerate(zip(projections, spaces, strict=True)):
        found, streams = inputs_at(model, [projection, behind], prompts, positions, pad)
        keys, stream = torch.cat(found).double(), torch.cat(streams)
        residuals = (targets - stream).T.double() / (len(projections) - number)
        projected, size = space.project(keys), keys.square().sum(dim=1).mean()
        protected = space.project(_earlier(projection, adapter, float(keys.norm())))
        rows = ridge_rows(projected, protected, RIDGE * float(size))
        a, b = exact_factors(residuals, rows)
        kept = 1.0
        if share is not None:
            a, b, kept = truncate(a, b, share)
        projection.set_factors(adapter, a, b)
        in_null_space = float(projected.square().sum() / keys.square().sum())
        edited.append(EditedLayer(len(a), space.dimension, in_null_space, kept, len(protected)))
        advance(1)
    rank = max(layer.rank for layer in edited)
    for projection in projections:
        projection.set_factors(
            adapter, *pad_rank(projection.unierase_A[adapter].data, projection.unierase_B[adapter].data, rank)
        )
    return edited


def _earlier(projection: Any, adapter: str, largest: float) -> torch.Tensor:
    """Keys of the other active adapters in a layer, `(n, d_ff)`."""
    names = [name for name in projection.held_adapters(projection.active_adapters) if name != adapter]
    own = projection.unierase_A[adapter]
    found = [earlier_keys(projection.unierase_A[name].detach(), largest) for name in names]
    return torch.cat([own.new_zeros(0, own.shape[1], dtype=torch.float64), *found])
