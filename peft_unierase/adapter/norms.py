"""How large the values of an erasure may be."""

from __future__ import annotations

import math

import torch

# The largest found in an erasure is 19 (docs/guides/security.md); fp16 ends at 65504.
MAX_NORM = 10_000.0
VALUES_AT_ONCE = 1 << 22


def largest_norm(tensor: torch.Tensor, columns: bool = False) -> float | None:
    """The largest norm of a row of a matrix (or a column), or that of a vector; `None` if a value is not finite."""
    matrix = tensor[None] if tensor.dim() == 1 else tensor.T if columns else tensor
    if matrix.numel() <= VALUES_AT_ONCE:
        # In single precision nothing is copied, and what overflows there is looked at again.
        for dtype in (torch.float32, torch.float64) if matrix.dtype != torch.float64 else (torch.float64,):
            most = float(torch.linalg.vector_norm(matrix, dim=1, dtype=dtype).max())
            if math.isfinite(most):
                return most
        return None
    squares = torch.zeros(len(matrix), dtype=torch.float64)
    width = min(matrix.shape[1], VALUES_AT_ONCE)
    for rows, sums in zip(
        matrix.split(max(1, VALUES_AT_ONCE // width)), squares.split(max(1, VALUES_AT_ONCE // width)), strict=True
    ):
        for part in rows.split(width, dim=1):
            sums += part.double().square().sum(dim=1)
    most = float(squares.max())
    return math.sqrt(most) if math.isfinite(most) else None


def is_sound(tensor: torch.Tensor, columns: bool = False) -> bool:
    """Whether all values are finite and none of the norms is huge; see [`largest_norm`]."""
    largest = largest_norm(tensor, columns)
    return largest is not None and largest <= MAX_NORM
