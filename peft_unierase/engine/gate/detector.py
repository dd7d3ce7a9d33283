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

    def __add__(self, other: ShutKeys) -> ShutKeys:
        both = ShutKeys(0)
        both.moment = self.moment + other.moment.to(self.moment.device)
        return both


def solve_detectors(
    forget_keys: torch.Tensor,
    openings: torch.Tensor,
    weights: torch.Tensor,
    shut: ShutKeys,
    retain_weight: float,
    shifts: torch.Tensor | None = None,
    ridge: float = 1e-4,
) -> torch.Tensor:
    """Detector rows by weighted ridge regression (AlphaEdit, arXiv 2410.02355, with one target direction).

    Minimises over `a`, the rows of all layers side by side, `sum w (k.a - opening)^2 + retain_weight * (sum over shut
    keys of their w (k.a)^2 + mean over the shifts (s.a)^2) + eps |a|^2`, where eps is `ridge` times the mean square of
    a forget key's components. Moments are summed in the keys' dtype and solved in fp64.

    Args:
        forget_keys: Keys on which the gates must open together, `(u, D)`.
        openings: What they shall answer on each, `(u,)`.
        weights: What each weighs, `(u,)`.
        shut: Keys on which all gates together must stay shut.
        retain_weight: How much each group of those weighs beside the forget keys.
        shifts: What the gates themselves add to the forget keys, `(u, D)`: a group of its own on which they must stay
            shut, weighted as the forget keys are. Without it an open gate below opens those above.
        ridge: Relative size of the last term.

    Returns:
        The rows `a`, `(D,)`, in the dtype of `forget_keys`.
    """
    weighted = forget_keys * weights[:, None]
    gram = (forget_keys.T @ weighted).double()
    gram += retain_weight * shut.moment.to(gram.device)
    if shifts is not None:
        gram += retain_weight * (shifts.T @ (shifts * (weights / weights.sum())[:, None]))
    # Sums in the dtype of the keys are not quite positive definite where there are fewer keys than dimensions.
    rounding = 4 * torch.finfo(forget_keys.dtype).eps * gram.trace()
    gram.diagonal().add_(ridge * forget_keys.double().pow(2).mean() + rounding)
    factor = torch.linalg.cholesky(gram)
    right = weighted.double().T @ openings.double()
    return torch.cholesky_solve(right[:, None], factor)[:, 0].to(forget_keys.dtype)
