"""The closed form: which rows detect the forget keys and stay shut on all others. Pure functions on tensors.

The detectors of all edited layers are solved *together*, on the keys of all of them side by side: what one layer
cannot tell apart another can. `docs/recipe.md` has the figures.
"""

from __future__ import annotations

import torch


class ShutKeys:
    """Keys on which the gates must stay shut, each with a weight of its own, held as their second moment.

    Args:
        width: Width of a key: that of all edited layers together, `D`.
    """

    def __init__(self, width: int) -> None:
        self.moment = torch.zeros(width, width)

    def add(self, keys: torch.Tensor, weight: float) -> None:
        """Take in keys `(n, D)`. A group of `n` weighs as one mean when each of its keys weighs `1 / n`."""
        self.moment = self.moment.to(keys.device).addmm_(keys.T, keys, alpha=weight)


def solve_detectors(
    forget_keys: torch.Tensor,
    openings: torch.Tensor,
    weights: torch.Tensor,
    shut: ShutKeys,
    fixed: torch.Tensor,
    retain_weight: float,
    ridge: float = 1e-4,
) -> torch.Tensor:
    """Detector rows by weighted ridge regression (AlphaEdit, arXiv 2410.02355, with one target direction).

    The rows of lower layers are `fixed` already. Minimises over `a`, the rows of the layers that are left, side by
    side, `sum w (k.a - opening)^2 + retain_weight * sum over shut keys of their w (fixed.k_lower + a.k)^2 + eps |a|^2`,
    where eps is `ridge` times the mean square of a forget key's components. Moments are summed in the keys' dtype and
    solved in fp64.

    Args:
        forget_keys: Keys of the layers that are left, on which their gates must open together, `(u, E)`.
        openings: What those shall answer on each, `(u,)`: what the lower ones left missing.
        weights: What each weighs, `(u,)`.
        shut: Keys of all layers, `D >= E`, on which all gates together must stay shut.
        fixed: Rows of the lower layers, `(D - E,)`.
        retain_weight: How much those weigh beside the forget keys.
        ridge: Relative size of the last term.

    Returns:
        The rows `a`, `(E,)`, in the dtype of `forget_keys`.
    """
    lower = len(fixed)
    weighted = forget_keys * weights[:, None]
    gram = (forget_keys.T @ weighted).double()
    gram += retain_weight * shut.moment[lower:, lower:]
    gram.diagonal().add_(ridge * forget_keys.double().pow(2).mean())
    right = weighted.double().T @ openings.double()
    if lower:
        right -= retain_weight * shut.moment[lower:, :lower].double() @ fixed.double()
    # The matrix is positive definite: eps is on its diagonal.
    factor = torch.linalg.cholesky(gram)
    return torch.cholesky_solve(right[:, None], factor)[:, 0].to(forget_keys.dtype)
