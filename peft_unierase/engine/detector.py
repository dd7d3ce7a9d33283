"""The closed form: which row detects the forget keys and stays shut on all others. Pure functions on tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def solve_detector(
    forget_keys: torch.Tensor,
    openings: torch.Tensor,
    shut_keys: Sequence[tuple[torch.Tensor, float]],
    ridge: float = 1e-4,
) -> torch.Tensor:
    """One detector row by weighted ridge regression (AlphaEdit, arXiv 2410.02355, with one target direction).

    Minimises `mean((K a - openings)^2) + sum over groups of weight * mean((K_group a)^2) + eps |a|^2`, where eps is
    `ridge` times the mean square of a key's components. Solved in fp64 in the smaller of the two dimensions.

    Args:
        forget_keys: Keys on which the gate must open, `(u, d_ff)`.
        openings: What the gate shall answer on each, `(u,)`.
        shut_keys: Groups of keys on which it must stay shut, each `(n, d_ff)`, with the weight of their mean.
        ridge: Relative size of the last term.

    Returns:
        The detector row `a`, `(d_ff,)`, in the dtype of `forget_keys`.
    """
    groups = [(forget_keys, 1.0), *((keys, weight) for keys, weight in shut_keys if len(keys))]
    rows = torch.cat([keys.double() * (weight / len(keys)) ** 0.5 for keys, weight in groups])
    targets = torch.zeros(len(rows), dtype=rows.dtype, device=rows.device)
    targets[: len(forget_keys)] = openings.double() / len(forget_keys) ** 0.5
    eps = ridge * forget_keys.double().pow(2).mean()
    if rows.shape[0] < rows.shape[1]:
        gram = rows @ rows.T
        gram.diagonal().add_(eps)
        detector = rows.T @ torch.linalg.solve(gram, targets)
    else:
        gram = rows.T @ rows
        gram.diagonal().add_(eps)
        detector = torch.linalg.solve(gram, rows.T @ targets)
    return detector.to(forget_keys.dtype)
