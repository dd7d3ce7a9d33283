"""The closed form: which row detects the forget keys and stays shut on all others. Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class ShutKeys:
    """Keys of one layer on which its gate must stay shut, in groups whose means weigh the same.

    Args:
        groups: Each `(n, d_ff)`; empty ones are left out. The doors of retained questions are a group of their own, so
            that these few near misses weigh as much as all other positions together.

    Attributes:
        rows: All keys, each divided by the root of its group's size, `(sum of n, d_ff)`.
    """

    def __init__(self, groups: Sequence[torch.Tensor]) -> None:
        self.rows = torch.cat([keys / len(keys) ** 0.5 for keys in groups if len(keys)])
        self._gram: torch.Tensor | None = None

    def gram(self) -> torch.Tensor:
        """`rows` transposed times `rows`, `(d_ff, d_ff)`: the sum of the groups' second moments. Computed once."""
        if self._gram is None:
            self._gram = self.rows.T @ self.rows
        return self._gram


def solve_detector(
    forget_keys: torch.Tensor, openings: torch.Tensor, shut: ShutKeys, weight: float, ridge: float = 1e-4
) -> torch.Tensor:
    """One detector row by weighted ridge regression (AlphaEdit, arXiv 2410.02355, with one target direction).

    Minimises `mean((K a - openings)^2) + weight * sum over groups of mean((K_group a)^2) + eps |a|^2`, where eps is
    `ridge` times the mean square of a forget key's components. Solved in fp64 in the smaller of the two dimensions: the
    keys' width, or their number.

    Args:
        forget_keys: Keys on which the gate must open, `(u, d_ff)`.
        openings: What the gate shall answer on each, `(u,)`.
        shut: Keys on which it must stay shut.
        weight: How much each of their groups weighs beside the forget keys.
        ridge: Relative size of the last term.

    Returns:
        The detector row `a`, `(d_ff,)`, in the dtype of `forget_keys`.
    """
    count, width = forget_keys.shape
    keys = forget_keys.double() / count**0.5
    targets = openings.double() / count**0.5
    eps = ridge * forget_keys.double().pow(2).mean()
    if count + len(shut.rows) < width:
        rows = torch.cat([keys, shut.rows.double() * weight**0.5])
        gram = rows @ rows.T
        gram.diagonal().add_(eps)
        padded = torch.cat([targets, torch.zeros(len(shut.rows), dtype=targets.dtype, device=targets.device)])
        detector = rows.T @ torch.linalg.solve(gram, padded)
    else:
        gram = keys.T @ keys + weight * shut.gram().double()
        gram.diagonal().add_(eps)
        detector = torch.linalg.solve(gram, keys.T @ targets)
    return detector.to(forget_keys.dtype)
