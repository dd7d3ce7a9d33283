"""The null space of general knowledge: key directions that retained facts hardly use. Pure functions on tensors.

AlphaEdit (arXiv 2410.02355, section 3.2) projects every edit onto it, so that `Delta k` is all but zero for every
retained key `k`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ...errors import InputError


@dataclass(frozen=True)
class NullSpace:
    """The projector `P` on the null space, as an operator: `P` itself, `(d_ff, d_ff)`, is never formed.

    Attributes:
        basis: Orthonormal columns, `(d_ff, m)`: of the null space or of its complement, whichever is the thinner.
        spans_null: Whether the basis is that of the null space itself.
        dimension: Dimension of the null space.
    """

    basis: torch.Tensor
    spans_null: bool
    dimension: int

    def project(self, keys: torch.Tensor) -> torch.Tensor:
        """`P k` of every key, `(n, d_ff)` in and out: `V V^T k`, or `k - U U^T k`."""
        inside = (keys @ self.basis) @ self.basis.T
        return inside if self.spans_null else keys - inside


class SecondMoment:
    """Mean of `k k^T` over keys that come in blocks."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._count = 0

    def add(self, keys: torch.Tensor) -> None:
        """Take in keys `(n, d_ff)`; the products are made in their dtype and summed in fp64."""
        product = (keys.T @ keys).double()
        self._total = product if self._total is None else self._total.add_(product)
        self._count += len(keys)

    def mean(self) -> torch.Tensor:
        """`(d_ff, d_ff)` in fp64.

        Raises:
            ValueError: There were no keys.
        """
        if self._total is None or not self._count:
            raise InputError("there are no retained keys, so there is no null space to edit in; give retain facts")
        return self._total / self._count


def null_space(moment: torch.Tensor, threshold: float) -> NullSpace:
    """The span of the eigenvectors whose eigenvalue is at most `threshold` times the mean eigenvalue.

    The published threshold, 0.02, is an absolute one and fits the scale of one model's keys; relative to the mean it
    means the same for every model.

    Args:
        moment: Second moment of retained keys, `(d_ff, d_ff)`, fp64.
        threshold: At least 0; at 0 nothing at all is given up, and where the retained keys span everything nothing can
            be edited.

    Returns:
        The projector, its basis in fp64.
    """
    values, vectors = torch.linalg.eigh(moment)  # ascending
    dimension = int((values <= threshold * values.mean()).sum())
    spans_null = 2 * dimension <= len(values)
    basis = vectors[:, :dimension] if spans_null else vectors[:, dimension:]
    return NullSpace(basis.contiguous(), spans_null, dimension)
