"""The edit of one layer in closed form, and its exact low-rank factors. Pure functions on tensors.

AlphaEdit's update (arXiv 2410.02355, equation 14; UniErase, arXiv 2505.15674, section 3.3) for residuals R `(d, u)`,
keys K `(d_ff, u)` and keys of earlier erasures K_p is

    Delta = R K^T P (K K^T P + K_p K_p^T P + lambda I)^-1.

With `K' = P K` and because P is a projector, that is `R K'^T (K' K'^T + K_p' K_p'^T + lambda I)^-1`, and the
push-through identity makes of the `d_ff x d_ff` solve one of size `u + u_p`:

    Delta = [R 0] (C^T C + lambda I)^-1 C^T   with   C = [K' K_p'].

Only R's columns are left of the first product, so `B = R` and `A = (the first u rows of the rest)` are the factors.
"""

from __future__ import annotations

import torch


def ridge_rows(keys: torch.Tensor, earlier: torch.Tensor, ridge: float) -> torch.Tensor:
    """The rows of `A` with `Delta = R A`.

    Args:
        keys: Projected keys of the facts, `(u, d_ff)`.
        earlier: Projected keys of earlier erasures, `(u_p, d_ff)`; may be empty.
        ridge: `lambda`, in the unit of a squared key; greater than 0.

    Returns:
        `(u, d_ff)` in fp64.
    """
    both = torch.cat([keys, earlier]).double()
    gram = both @ both.T
    gram.diagonal().add_(ridge)
    return torch.linalg.solve(gram, both)[: len(keys)]


def exact_factors(residuals: torch.Tensor, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The smallest exact factors of `residuals @ rows`: as they are, or of rank `d` where there are more keys.

    Args:
        residuals: R, `(d, u)`.
        rows: `(u, d_ff)`.

    Returns:
        `A (r, d_ff)` and `B (d, r)` with `r = min(u, d)`. Where R is factored as `B Q`, Q has orthonormal rows and A is
        `Q rows`, so that A's pseudo-inverse still holds combinations of keys in their own size; see `earlier_keys`.
    """
    width, count = residuals.shape
    if count <= width:
        return rows, residuals
    orthonormal, triangle = torch.linalg.qr(residuals.T)
    return orthonormal.T @ rows, triangle.T


def truncate(a: torch.Tensor, b: torch.Tensor, share: float) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The smallest rank that keeps a share of the edit's energy `||B A||_F^2`, by its singular vectors.

    Found in the factors' own size, by QR of both; `B A` is never formed.

    Args:
        a: `A`, `(r, d_ff)`.
        b: `B`, `(d, r)`.
        share: What to keep, above 0 and at most 1.

    Returns:
        `A' (r', d_ff)`, `B' (d, r')`, and the share of the energy that they keep.
    """
    left, small_left = torch.linalg.qr(b)
    _, small_right = torch.linalg.qr(a.T)
    vectors, values, _ = torch.linalg.svd(small_left @ small_right.T)
    energy = values.square().cumsum(0)
    rank = int((energy < share * energy[-1]).sum()) + 1
    kept = left @ vectors[:, :rank]
    # Projecting the edit on the kept outputs is its truncated SVD; the factors stay as `exact_factors` leaves them.
    rows, columns = exact_factors(kept.T @ b, a)
    return rows, kept @ columns, float(energy[rank - 1] / energy[-1])


def pad_rank(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The same edit with zero rows and columns up to `rank`."""
    missing = rank - a.shape[0]
    rows, columns = a.new_zeros(missing, a.shape[1]), b.new_zeros(b.shape[0], missing)
    return torch.cat([a, rows]), torch.cat([b, columns], dim=1)


def earlier_keys(a: torch.Tensor, largest: float) -> torch.Tensor:
    """The keys of an earlier erasure, from its own `A = (K'^T K' + lambda I)^-1 K'^T`, so `K' = A^+`.

    Nothing about its facts has to be stored for this. Exact where its lambda was small beside its keys; key directions
    weaker than that cannot be told from strong ones, come back too long, and are cut to `largest`, which protects them
    more than need be. It works for any factors, since the rows of A span the directions that the edit reads.

    Args:
        a: `A`, `(r, d_ff)`; zero rows are padding.
        largest: Longest that a combination of its keys may be, in the unit of keys.

    Returns:
        `(n, d_ff)` in fp64 with `n` at most `r`.
    """
    _, values, directions = torch.linalg.svd(a.double(), full_matrices=False)
    used = values > 1e-6 * values.max().clamp(min=1e-300)
    # Up to a rotation, which `K' K'^T` does not see, these are the columns of the pseudo-inverse.
    return (1 / values[used]).clamp(max=largest)[:, None] * directions[used]
